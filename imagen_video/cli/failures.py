"""What a command that failed says on stderr, one line each, and its exit code."""

import os
import re
import signal
import sys

from absl import flags

# The extra of setup.py that brings a module which a plain install lacks.
EXTRAS = {
    "array_record": "train",
    "gcsfs": "gcs",
    "grain": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "data",
    "scipy": "metrics",
}
# XLA's own error, which has no type of its own.
_OF_COMPILER_OPTIONS = re.compile("No such compile option|While setting option")


def report(error: BaseException, command: str) -> int | None:
    """Says what went wrong and returns the exit code; None for a bug, whose traceback is wanted.

    Exit codes: 2 a mistake of the user's, a run that diverged or a missing package, 130
    interrupted, 141 nobody reads the output.
    """
    match error:
        case BrokenPipeError():  # The reader of a pipe, such as `head`, has seen enough.
            _drop_stdout()
            return 128 + signal.SIGPIPE
        case KeyboardInterrupt():
            print(file=sys.stderr)  # Below the ^C, or a progress bar.
            _say("interrupted")
            return 128 + signal.SIGINT
        # fsspec, which opens gs://, raises a plain ImportError from the one that has the name.
        case (
            ModuleNotFoundError(name=name) | ImportError(__cause__=ModuleNotFoundError(name=name))
        ) if name in EXTRAS:
            _say(f"{command} needs {name}: pip install 'imagen-video[{EXTRAS[name]}]'")
            return 2
        case _ if _is_mistake(error):
            if os.environ.get("IMAGEN_VIDEO_TRACEBACK", "0") != "0":
                return None
            _say(_one_line(error))
            return 2
    return None


def _is_mistake(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return _OF_COMPILER_OPTIONS.search(str(error)) is not None
    return isinstance(error, flags.Error | ValueError | OSError | FloatingPointError)


def _say(line: str) -> None:
    print(f"imagen-video: {line}", file=sys.stderr)


def _drop_stdout() -> None:
    """Sends what is still buffered nowhere, or Python would complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    where = "compiler_options: " if isinstance(error, RuntimeError) else ""
    return where + " ".join(str(error).split()) or type(error).__name__
