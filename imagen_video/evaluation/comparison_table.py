"""A comparison as a Markdown table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a line for each row that `run_comparison` made, its figures with standard errors.

    Seconds are medians over the rounds, shares are in percent; what was not measured is left empty.
    """
    names = list(rows[0]["agreement"])
    lines = [["row", "seconds", "times faster", "TFLOP", *names, "feature distance"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        seconds, faster = row["seconds"], row["times_faster"]
        lines.append(
            [
                row["name"],
                f"{statistics.median(seconds):.1f}" if seconds else "",
                f"{faster:.1f}" if faster else "",
                f"{row['flops'] / 1e12:.3g}",
                *(_with_error(*row["agreement"][name], scale=100.0, digits=1) for name in names),
                _with_error(*row["feature_distance"], scale=1.0, digits=3),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_error(mean: float | None, error: float | None, *, scale: float, digits: int) -> str:
    if mean is None:
        return ""
    text = f"{scale * mean:.{digits}f}"
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"
