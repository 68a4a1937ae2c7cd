"""What a ladder leaves in its work directory besides its rungs' checkpoints.

ladder.json              names of the rungs, the first one first
RUNG/                    a training run's work directory
RUNG/evaluation.json     how close the student came; there once the rung is finished
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from imagen_video import records

LADDER_FILE = "ladder.json"
EVALUATION_FILE = "evaluation.json"


def last_rung(workdir: epath.Path) -> epath.Path:
    """Returns the folder of a finished ladder's last student.

    Raises:
      ValueError: the ladder is not finished.
    """
    names = json.loads((workdir / LADDER_FILE).read_text())["rungs"]
    for name in names:
        if read_evaluation(workdir / name) is None:
            raise ValueError(f"{workdir}: the ladder is not finished, {name} of {names} is missing")
    return workdir / names[-1]


def write_ladder(workdir: epath.Path, names: Sequence[str]) -> None:
    """Notes which rungs there will be, in a folder that is made where there is none."""
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / LADDER_FILE, {"rungs": list(names)})


def read_evaluation(rung: epath.Path) -> dict[str, Any] | None:
    """Returns what `write_evaluation` wrote; None for a rung that is not finished."""
    path = rung / EVALUATION_FILE
    return json.loads(path.read_text()) if path.exists() else None


def write_evaluation(rung: epath.Path, evaluation: Mapping[str, Any]) -> None:
    """Marks a rung as finished."""
    _write(rung / EVALUATION_FILE, evaluation)


def check_same_rung(folder: epath.Path, record: Any) -> None:
    """Raises ValueError if a rung in `folder` was begun under another configuration."""
    path = folder / "config.json"
    if not path.exists():
        return
    begun, wanted = json.loads(path.read_text()).get("run"), records.to_dict(record)
    try:
        # Fields that have come since then have their defaults.
        begun = records.to_dict(records.from_dict(type(record), begun))
    except ValueError:  # It says otherwise what differs.
        pass
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


def _write(path: epath.Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)
