"""Reports of `imagen-video compile` for people: one as lines, several as a Markdown table."""

import json
import pathlib


def report_lines(report: dict) -> str:
    """Returns a report as lines of names and numbers."""
    verdict = "fits" if report["fits"] else "does not fit"
    lines = [f"{report['stage']} {report['program']} on {report['slice']}: {verdict}"]
    for name, value in (report | (report["compiled"] or {})).items():
        if isinstance(value, float):
            lines.append(f"  {name.replace('_', ' '):<18} {value:>10.4g}")
        elif name == "collective_gib":
            lines += [f"  {kind:<18} {gib:>10.4g} GiB" for kind, gib in value.items()]
        elif name == "seconds_of":
            whole = sum(value.values())
            lines += [f"    {kind:<16} {part / whole:>10.0%}" for kind, part in value.items()]
    return "\n".join(lines)


def report_table(folder: str | pathlib.Path) -> str:
    """Returns the table of all `*.json` reports in `folder`, in the order of their names.

    Raises:
      ValueError: there are none, or one is something else.
    """
    files = sorted(pathlib.Path(folder).glob("*.json"))
    if not files:
        raise ValueError(f"{folder}: no *.json reports of imagen-video compile")
    rows, versions = [], set()
    for file in files:
        try:
            report = json.loads(file.read_text())
            rows.append(_row(report))
            versions.add(f"jax {report['jax']}, libtpu {report['libtpu']}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: no report of this imagen-video compile ({error})") from error
    head = (
        "| stage | program | slice | rows | GiB of a chip's | seconds | share of peak | ceiling"
        " | FLOPs | to compile |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    foot = (
        f"Compiler's estimates, not measured on a TPU: {'; '.join(sorted(versions))}."
        " FLOPs: the program's over the model's. To compile: measured, time and most memory of the"
        " machine that compiled."
    )
    return "\n".join([*head, *rows, "", foot])


def _row(report: dict) -> str:
    names = [report["stage"], report["program"], report["slice"], str(report["rows"])]
    compiled = report["compiled"]
    if compiled is None:
        missing = report["missing_gib"]
        too_many = "" if missing is None else f", {missing:.1f} too many"
        cells = [f"does not fit{too_many}", "", "", "", ""]
    else:
        memory = compiled["arguments_gib"] + compiled["temporaries_gib"]
        ceiling = compiled["ceiling"]
        cells = [
            f"{memory:.1f} of {report['hbm_gib']:.0f}",
            f"{compiled['seconds']:.3g}",
            f"{compiled['share_of_peak']:.0%}",
            "" if ceiling is None else f"{ceiling:.0%}",
            f"{compiled['repeated']:.2f}",
        ]
    effort = f"{report['compile_seconds']:.0f} s, {report['host_gib']:.1f} GiB"
    return f"| {' | '.join([*names, *cells, effort])} |"
