"""Set before JAX starts: programs here are compiled more often than run, so compile cheaply."""

import gc
import os

# The CPU's emitters of fusions take most of the time, and make faster programs of no use here.
_CHEAP = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CHEAP}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What JAX keeps of every program grows, and is looked through often.
gc.set_threshold(100_000, 50, 100)
