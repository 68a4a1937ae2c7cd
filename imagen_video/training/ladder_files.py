"""What a ladder leaves in its work directory besides its rungs' checkpoints.

ladder.json              names of the rungs, the first one first, and the error of a good one
RUNG/                    a training run's work directory
RUNG/evaluation.json     how close the student came; there once the rung is finished
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from imagen_video import records
from imagen_video.cascade.same_network import COMPUTED_BY

LADDER_FILE = "ladder.json"
EVALUATION_FILE = "evaluation.json"
# Fields of a rung and its data that do not say what it learns: a ladder goes on under others, such
# as those of another slice's recipe.
HOW_IT_RUNS = (
    *COMPUTED_BY,
    *("num_threads", "num_workers", "compiler_options", "microbatches"),
    *("log_every", "checkpoint_every", "keep", "keep_every", "max_skipped"),
)


def last_rung(workdir: epath.Path) -> epath.Path:
    """Returns the folder of a finished ladder's last student.

    Raises:
      ValueError: the ladder is not finished, its last rung diverged, or a file of it is damaged.
    """
    ladder = _read(workdir / LADDER_FILE, "rungs")
    names = ladder["rungs"]
    if not names:
        raise ValueError(f"{workdir / LADDER_FILE}: is damaged: it names no rung")
    for name in names:
        if read_evaluation(workdir / name) is None:
            raise ValueError(f"{workdir}: the ladder is not finished, {name} of {names} is missing")
    evaluation = read_evaluation(workdir / names[-1])
    if "max_error" in ladder and not has_converged(evaluation, ladder["max_error"]):
        raise ValueError(f"{workdir}: {names[-1]} diverged: its error is {evaluation['error']}")
    return workdir / names[-1]


def has_converged(evaluation: Mapping[str, Any], max_error: float) -> bool:
    """Whether a student's error is at most `max_error`, or no more than what it began with."""
    before, error = evaluation["error_before"], evaluation["error"]
    return before is not None and error is not None and error <= max(before, max_error)


def write_ladder(workdir: epath.Path, names: Sequence[str], *, max_error: float) -> None:
    """Notes which rungs there will be, in a folder that is made where there is none."""
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / LADDER_FILE, {"rungs": list(names), "max_error": max_error})


def read_evaluation(rung: epath.Path) -> dict[str, Any] | None:
    """Returns what `write_evaluation` wrote; None for a rung that is not finished."""
    path = rung / EVALUATION_FILE
    if not path.exists():
        return None
    evaluation = _read(path, "error_before", "error")
    for name in ("error_before", "error"):
        if not isinstance(evaluation[name], float | int | None):
            raise ValueError(f"{path}: is damaged: {name} is {evaluation[name]!r}")
    return evaluation


def check_teachers(workdir: epath.Path, names: Sequence[str]) -> None:
    """Raises ValueError if a rung was begun, and the one it learns from is to be trained anew.

    A student would be kept whose teacher is no rung of this ladder.
    """
    for teacher, student in itertools.pairwise(workdir / name for name in names):
        checkpoints = (teacher / "checkpoints").glob("*")
        is_there = (teacher / EVALUATION_FILE).exists() or any(
            path.name.isdecimal() for path in checkpoints
        )
        if not is_there and any(
            (student / file).exists() for file in (EVALUATION_FILE, "config.json")
        ):
            raise ValueError(
                f"{student}: learned from {teacher}, which is gone: delete it, too, and all later"
                " rungs, or use another work directory"
            )


def write_evaluation(rung: epath.Path, evaluation: Mapping[str, Any]) -> None:
    """Marks a rung as finished."""
    _write(rung / EVALUATION_FILE, evaluation)


def check_same_rung(folder: epath.Path, rung: Any, run: Any, *, is_first: bool) -> None:
    """Raises ValueError if a rung in `folder` was begun under another configuration, or is damaged.

    Args:
      folder: of the rung, which may not have begun.
      rung: its record.
      run: that of the ladder, of which the data count.
      is_first: whether the rung's teacher is that of the ladder, which counts, too.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    config = _read(path)
    of_rung = _current(config.get("run"), rung), records.to_dict(rung)
    _check_equal(folder, *map(_what_counts, of_rung))
    begun, wanted = _current(config.get("ladder"), run), records.to_dict(run)
    for field in ("data", "teacher") if is_first else ("data",):
        pair = ({field: ladder.get(field)} for ladder in (begun or {}, wanted))
        _check_equal(folder, *map(_what_counts, pair))


def _current(begun: Any, record: Any) -> Any:
    """What was begun, with the defaults of fields that have come since then."""
    try:
        return records.to_dict(records.from_dict(type(record), begun))
    except ValueError:  # It says otherwise what differs.
        return begun


def _what_counts(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _what_counts(item) for name, item in value.items() if name not in HOW_IT_RUNS}


def _check_equal(folder: epath.Path, begun: Any, wanted: Any) -> None:
    if begun != wanted:
        field = _first_difference(begun, wanted)
        raise ValueError(f"{folder}: was begun with another {field}; use another work directory")


def _first_difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted(a.keys() | b.keys()):
            if a.get(name) != b.get(name):
                path = f"{where}.{name}" if where else name
                return _first_difference(a.get(name), b.get(name), path)
    return f"{where} ({a!r}, now {b!r})"


def _read(path: epath.Path, *fields: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        missing = [name for name in fields if name not in value]
        if not isinstance(value, dict) or missing:
            raise ValueError(f"it lacks {missing[0]}" if missing else "it is no JSON object")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: is damaged: {error}") from error
    return value


def _write(path: epath.Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)
