"""Training metrics on disk: TensorBoard events and one line of JSON a report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard events into a folder.

    A run that goes on from step s drops what was reported after s: those steps are done again. In a
    bucket (`gs://`) only the TensorBoard events are written, because its files cannot be added to.
    """

    def __init__(self, workdir: str, *, start_step: int = 0, enabled: bool = True):
        """Opens the files.

        Args:
          workdir: an existing folder, or a bucket's address.
          start_step: step the run goes on from.
          enabled: False writes nothing, for all processes but the first.
        """
        self._lines = self._events = None
        if not enabled:
            return
        # Here, because the library without training needs no TensorBoard.
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(logdir=workdir, purge_step=start_step + 1, flush_secs=30)
        if "://" not in workdir:
            path = Path(workdir) / "metrics.jsonl"
            _drop_after(path, start_step)
            self._lines = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one report; a value that is not finite becomes null in the JSON."""
        if self._events is None:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._lines is not None:
            finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
            self._lines.write(json.dumps({"step": step} | finite) + "\n")
            self._lines.flush()

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a picture, such as a contact sheet of samples, in TensorBoard."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._events is not None:
            self._events.close()
        if self._lines is not None:
            self._lines.close()
        self._lines = self._events = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the whole lines of `path` up to `step`; a line cut short by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    part = path.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(path)
