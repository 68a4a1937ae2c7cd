"""Joining the other processes of one job, and leaving them."""

import os
import sys
import time
import traceback

from absl import flags

from imagen_video.config import CommandFlags


def define(flag_values: CommandFlags) -> None:
    """Defines --distributed."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the other processes of this job. Who they are is read from the environment: TPU pods,"
        " GKE, Slurm and Open MPI, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.",
        flag_values=flag_values,
    )


def join(flag_values: CommandFlags, *, saves_when_stopped: bool = False) -> None:
    """Joins, if asked to; before anything touches a device.

    Args:
      flag_values: of the command.
      saves_when_stopped: whether the command asks `StopSignal` between steps. SIGTERM is then noted
        by jax, for all processes to stop at one step; of other commands it ends the process.

    Raises:
      ValueError: nothing in the environment says who the others are.
    """
    if not flag_values.distributed:
        return
    import jax

    if not saves_when_stopped:
        jax.config.update("jax_enable_preemption_service", False)
    given = {}
    for field, variable in (
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        if variable in os.environ:
            if not os.environ[variable].isdigit():
                raise ValueError(f"{variable}: {os.environ[variable]!r} is not a whole number")
            given[field] = int(os.environ[variable])
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS: {address!r} is not HOST:PORT")
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--distributed: {error}") from error


def leave(exit_code: int | None, error: BaseException) -> None:
    """Ends this process, if it has joined others, after a failure that may be its alone.

    An exit in good order would wait for the others, and they wait for this one in their next
    collective: after five minutes all would be aborted, with that for an exit code.

    Args:
      exit_code: None for a bug, whose traceback is printed; 1 then.
      error: that ends the process.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    if exit_code is None:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(1)  # Without the first the others are aborted: let them say why they fail, too.
    os._exit(1 if exit_code is None else exit_code)
