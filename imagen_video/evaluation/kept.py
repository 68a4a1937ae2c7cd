"""Results kept in JSON files beside what they are of, so that a rerun need not find them again."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from imagen_video.files import atomic_path


def keep(path: pathlib.Path, results: Mapping[str, Any], *, of: Mapping[str, Any]) -> None:
    """Writes JSON values, and under "of" all that they depend on."""
    with atomic_path(path) as part:
        part.write_text(json.dumps({"of": of, **results}, indent=2) + "\n")


def kept(path: pathlib.Path, *, of: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results in a file that `keep` wrote; none where they are of anything else.

    So are those of a file that is missing, damaged or another's: it is there to be written again.
    """
    try:
        results = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(results, dict) or results.pop("of", None) != json.loads(json.dumps(of)):
        return {}
    return results
