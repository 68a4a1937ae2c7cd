"""The files that a run's metrics are in, read back without the writer."""

import json
import math
import struct

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from imagen_video.training.metric_writer import MetricWriter


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def events(path):
    """The summaries in a folder's event files: length, its checksum, record, its checksum."""
    for file in sorted(path.glob("events.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                yield event.step, value


def test_scalars_are_in_both_files(tmp_path):
    with MetricWriter(str(tmp_path)) as writer:
        writer.scalars(10, {"loss": 0.5, "grad_norm": 2.0})
        writer.scalars(20, {"loss": math.nan, "grad_norm": 4.0})
    assert lines(tmp_path) == [
        {"step": 10, "loss": 0.5, "grad_norm": 2.0},
        {"step": 20, "loss": None, "grad_norm": 4.0},
    ]
    seen = {(step, v.tag): v.simple_value for step, v in events(tmp_path)}
    assert seen[10, "loss"] == 0.5 and seen[20, "grad_norm"] == 4.0
    assert math.isnan(seen[20, "loss"])


def test_images_are_in_the_events(tmp_path):
    with MetricWriter(str(tmp_path)) as writer:
        writer.image(3, "samples", np.full((6, 8, 3), 200, np.uint8))
    ((step, value),) = [(s, v) for s, v in events(tmp_path) if v.HasField("image")]
    assert step == 3 and (value.image.height, value.image.width) == (6, 8)


def test_going_on_drops_what_will_be_done_again(tmp_path):
    with MetricWriter(str(tmp_path)) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    with MetricWriter(str(tmp_path), start_step=20) as writer:
        writer.scalars(30, {"loss": -1.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, -1.0),
    ]
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_a_disabled_writer_leaves_nothing(tmp_path):
    with MetricWriter(str(tmp_path), enabled=False) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
