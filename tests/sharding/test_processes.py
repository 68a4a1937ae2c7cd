"""Processes of one job: what goes wrong on the first is told to all, and all stop together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Ends each process with what it was told, as a user's error or as it is.
ERROR = """
import sys, types
from imagen_video.cli.distributed import join
join(types.SimpleNamespace(distributed=True), saves_when_stopped=True)
kind = sys.argv[1]
from imagen_video.sharding.processes import from_first
def make():
    raise {"ValueError": ValueError, "KeyError": KeyError}[kind]("samples")
try:
    from_first(make)
except Exception as error:
    print("told", type(error).__name__, error, flush=True)
"""
# A training that ran through its steps, and saved its last; SIGTERM for one process; another
# training's later steps.
PREEMPTED = """
import os, signal, sys, time, types
import jax
import jax.numpy as jnp
from imagen_video.cli.distributed import join
join(types.SimpleNamespace(distributed=True), saves_when_stopped=True)
from imagen_video.training.checkpoints import Checkpoints
from imagen_video.training.state import TrainState
from imagen_video.training.stop_signal import StopSignal
with StopSignal() as stop:
    assert not any(stop.agreed() for step in range(int(sys.argv[1])))
everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), "d"), jax.sharding.PartitionSpec())
def make():
    w, step = {"w": jnp.ones(3)}, jnp.int32(100_000)
    return TrainState(step=step, params=w, ema_params=w, opt_state=w, skipped=step)
checkpoints = Checkpoints(sys.argv[2])
checkpoints.save(jax.jit(make, out_shardings=everywhere)(), data={}, config={})
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)  # So long the processes need to agree on the count at which they stop.
with StopSignal() as stop:
    for step in range(5000, 5400):
        time.sleep(0.05)
        if stop.agreed():
            print("told", step, stop.received, flush=True)
            break
checkpoints.close()
"""
# A mesh that takes devices of both processes in turn, as that of a TPU's torus does.
IN_TURN = """
import os, types
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
import numpy as np
from imagen_video.cli.distributed import join
join(types.SimpleNamespace(distributed=True))
from imagen_video.sharding.layout import Layout
from imagen_video.sharding.mesh import MESH_AXES
from imagen_video.training.loop import to_devices
devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(2, 2, 1, 1)
layout = Layout(mesh=jax.sharding.Mesh(devices, MESH_AXES))
rows = np.arange(2 * 8 * 3).reshape(2, 8, 3)  # microbatches, rows
parts = layout.parts_of_process(jax.process_index())
own = np.split(rows, layout.batch_shards, axis=1)
batch = {"rows": np.concatenate([own[part] for part in parts], axis=1)}
for shard in to_devices(batch, layout.batch(microbatches=2))["rows"].addressable_shards:
    np.testing.assert_array_equal(shard.data, rows[shard.index])
print("told", *parts, flush=True)
"""
# A command of which one process alone fails, the other in a collective by then.
ALONE = """
import sys, types
from imagen_video.cli import distributed
from imagen_video.cli.main import main
failing, error = sys.argv[1:]
def define(flag_values):
    distributed.define(flag_values)
def run(flag_values):
    distributed.join(flag_values, saves_when_stopped=True)
    import jax
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("both are there")
    if jax.process_index() == int(failing):
        raise {"ValueError": ValueError, "KeyError": KeyError}[error]("of this one")
    multihost_utils.sync_global_devices("never")
sys.modules["alone"] = types.ModuleType("alone", "One that fails.")
vars(sys.modules["alone"]).update(define=define, run=run, __spec__=sys.__spec__)
sys.exit(main(["alone", "--distributed"], commands={"alone": "alone"}))
"""
SAMPLING = """
import time, types
from imagen_video.cli.distributed import join
join(types.SimpleNamespace(distributed=True))
print("told to sample", flush=True)
time.sleep(100)
"""


def processes_of(program, *arguments, stderr=None):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            env=os.environ | job | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for number in range(2)
    ]


def told(processes):
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [
        [line.removeprefix("told ") for line in text.splitlines() if line.startswith("told ")]
        for text in outputs
    ]


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("ValueError", "ValueError samples", "ValueError samples"),
        # Not a user's mistake: its type is told, too.
        ("KeyError", "KeyError 'samples'", "ValueError KeyError('samples')"),
    ],
)
def test_every_error_of_the_first_process_reaches_the_second(kind, first, second):
    assert told(processes_of(ERROR, kind)) == [[first], [second]]


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_signal_before_a_run_or_between_two_stops_all_at_one_of_the_next_steps(
    tmp_path, steps_before
):
    (first,), (second,) = told(processes_of(PREEMPTED, str(steps_before), str(tmp_path)))
    assert first == second
    step, received = first.split()
    assert 5000 <= int(step) < 5399 and int(received) == signal.SIGTERM


def test_processes_hold_rows_that_are_no_neighbours():
    assert told(processes_of(IN_TURN)) == [["0 2"], ["1 3"]]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(("error", "exit_code"), [("ValueError", 2), ("KeyError", 1)])
def test_a_failure_of_one_process_ends_it_with_its_own_exit_code(failing, error, exit_code):
    processes = processes_of(ALONE, str(failing), error, stderr=subprocess.PIPE)
    # In good order it would wait five minutes for the other, then be aborted.
    said = processes[failing].communicate(timeout=100)[1]
    assert processes[failing].returncode == exit_code
    assert said.count("of this one") == 1 and said.count("Traceback") == (exit_code == 1), said
    if failing == 0:  # The coordinator, whom the other misses at once.
        assert processes[1].wait(timeout=100) != 0
    for process in processes:
        process.kill()
        process.communicate()


def test_a_command_that_saves_as_it_goes_ends_at_sigterm():
    processes = processes_of(SAMPLING)
    for process in processes:
        while (line := process.stdout.readline()) and not line.startswith("told"):
            pass
        assert line == "told to sample\n"
    for process in processes:
        process.terminate()
    assert [process.wait(timeout=30) for process in processes] == [-signal.SIGTERM] * 2
