"""Set before JAX starts: programs here are compiled more often than run, so compile cheaply."""

import os

_CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CHEAP}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
