"""What a layout asks of the compiler reaches every training step that is compiled."""

import jax
import jax.numpy as jnp
import optax
import pytest

from imagen_video.config import to_record
from imagen_video.profiling.programs import training_program
from imagen_video.profiling.rung_program import rung_program
from imagen_video.sharding.layout import Layout, ShardingConfig, make_layout
from imagen_video.training.placement import placement
from imagen_video.training.rungs import DistillRun
from imagen_video.training.stage_run import StageRun
from imagen_video.training.state import init_state
from imagen_video.training.step import make_train_step
from imagen_video_configs import distill
from imagen_video_configs.stages import tsr3

# Of a TPU's compiler, which a CPU's does not know.
REFUSED = pytest.raises(jax.errors.JaxRuntimeError, match="xla_enable_async_all_gather")


@pytest.fixture
def layout(monkeypatch):
    """Of a device that calls itself a TPU."""
    monkeypatch.setattr(Layout, "on_tpu", True)
    return make_layout(ShardingConfig(), jax.devices()[:1])


def test_a_run_on_tpus_asks_for_them_and_a_step_takes_them(layout):
    run = to_record(StageRun, tsr3.get_config("tiny"))
    options = placement(run.stage, run.train, layout)["compiler_options"]
    assert options == layout.compiler_options
    optimizer = optax.sgd(0.1)
    state = init_state(lambda key: {"w": jnp.ones(3)}, optimizer, seed=0)
    step = make_train_step(
        lambda params, batch, key: (params["w"].sum(), {}),
        optimizer,
        ema_decay=0.9,
        run_seed=0,
        compiler_options=options,
    )
    with REFUSED:
        step(state, {"x": jnp.ones(2)})


@pytest.mark.slow
def test_so_do_the_programs_that_are_compiled_for_slices(layout):
    run = to_record(StageRun, tsr3.get_config("tiny"))
    with REFUSED:
        training_program(run, layout).lower().compile()
    run = to_record(DistillRun, distill.get_config("tsr3,tiny"))
    program, _ = rung_program(run, "halve", layout)
    with REFUSED:
        program.lower().compile()
