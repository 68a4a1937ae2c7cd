"""Records survive a trip through JSON text, and whatever does not fit is refused by its path."""

import dataclasses
import json
import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_video import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    logsnr_max: float = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    slope: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.slope <= 0:
            raise ValueError(f"slope = {self.slope} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    frames: int
    width: int
    area: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "area", self.frames * self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    output: Grid
    schedule: Cosine | Linear
    input: Grid | None = None
    fill: Literal["repeat", "blank"] = "repeat"
    blocks: tuple[int, ...] = ()
    flags: list[bool] = dataclasses.field(default_factory=list)
    steps: int | tuple[int, ...] | Literal["published"] = 8
    grids: dict[str, Grid] = dataclasses.field(default_factory=dict)
    rate: float = 1e-4
    extra: Any = None


def through_json(record):
    text = json.dumps(records.to_dict(record), allow_nan=False)
    return records.from_dict(type(record), json.loads(text))


def a_stage(**changes):
    values = dict(name="base", output=Grid(frames=16, width=40), schedule=Linear(slope=2.0))
    return Stage(**(values | changes))


finite = st.floats(allow_nan=False, allow_infinity=False)
grids = st.builds(Grid, frames=st.integers(), width=st.integers())
positive = st.floats(min_value=1e-6, max_value=1e6)
schedules = st.builds(Cosine, logsnr_max=finite) | st.builds(
    Linear, slope=positive, bounds=st.tuples(finite, finite)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
stages = st.builds(
    Stage,
    name=st.text(),
    output=grids,
    schedule=schedules,
    input=st.none() | grids,
    fill=st.sampled_from(["repeat", "blank"]),
    blocks=st.lists(st.integers(), max_size=4).map(tuple),
    flags=st.lists(st.booleans(), max_size=3),
    steps=st.integers() | st.lists(st.integers(), max_size=3).map(tuple) | st.just("published"),
    grids=st.dictionaries(st.text(), grids, max_size=3),
    rate=finite,
    extra=json_values,
)


@settings(max_examples=100, deadline=None)
@given(stages)
def test_any_record_survives_json_text(stage):
    assert through_json(stage) == stage


def test_defaults_and_kinds_may_be_left_out_where_nothing_is_ambiguous():
    values = {
        "name": "base",
        "output": {"frames": 16, "width": 40},
        "schedule": {"kind": "Cosine"},
    }
    assert records.from_dict(Stage, values) == a_stage(schedule=Cosine())


def test_derived_fields_are_rebuilt_not_stored():
    stored = records.to_dict(Grid(frames=3, width=5))
    assert stored == {"kind": "Grid", "frames": 3, "width": 5}
    assert through_json(Grid(frames=3, width=5)).area == 15


def test_numbers_keep_their_type():
    assert type(through_json(a_stage(rate=1)).rate) is float
    assert type(through_json(a_stage(steps=3)).steps) is int

    @dataclasses.dataclass(frozen=True)
    class Either:
        x: float | int

    assert type(through_json(Either(3)).x) is int
    assert type(through_json(Either(3.0)).x) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "stage.nmae: unknown field of Stage; it has name, output"),
        ({"output": {"frames": 1, "width": 2, "h": 3}}, "stage.output.h: unknown field of Grid"),
        ({"output": {"frames": 1}}, "stage.output.width: missing, Grid needs it"),
        ({"output": None}, "stage.output: expected fields of Grid, got None"),
        ({"output": {"frames": 1.0, "width": 2}}, "stage.output.frames: expected int, got 1.0"),
        ({"output": {"frames": True, "width": 2}}, "stage.output.frames: expected int, got True"),
        ({"output": {"kind": "Cosine"}}, "stage.output.kind: 'Cosine' is not Grid"),
        # `area` is derived, so a file cannot set it.
        ({"output": {"frames": 1, "width": 2, "area": 9}}, "stage.output.area: unknown field"),
        ({"name": 3}, "stage.name: expected str, got 3"),
        ({"rate": "fast"}, "stage.rate: expected float, got 'fast'"),
        ({"rate": False}, "stage.rate: expected float, got False"),
        ({"rate": math.nan}, "stage.rate: nan is not finite"),
        ({"rate": -math.inf}, "stage.rate: -inf is not finite"),
        ({"fill": "black"}, "stage.fill: 'black' is not one of 'repeat', 'blank'"),
        ({"blocks": [1, "2"]}, r"stage.blocks\[1\]: expected int, got '2'"),
        ({"blocks": 3}, "stage.blocks: expected a list, got 3"),
        ({"blocks": "12"}, "stage.blocks: expected a list, got '12'"),
        ({"flags": [1]}, r"stage.flags\[0\]: expected bool, got 1"),
        ({"steps": 2.5}, "stage.steps: expected int, got 2.5; or stage.steps: expected a list"),
        ({"grids": [1]}, r"stage.grids: expected a mapping, got \[1\]"),
        ({"grids": {"a": {"frames": 1}}}, "stage.grids.a.width: missing"),
        ({"schedule": {"slope": 1.0}}, "stage.schedule.kind: missing, it is one of Cosine, Linear"),
        ({"schedule": {"kind": "Sine"}}, "stage.schedule.kind: 'Sine' is not one of Cosine, Lin"),
        ({"schedule": None}, "stage.schedule: may not be None"),
        ({"schedule": {"kind": "Linear", "slope": -1}}, "stage.schedule: slope = -1.0 must be pos"),
        (
            {"schedule": {"kind": "Linear", "slope": 1, "bounds": [1]}},
            "stage.schedule.bounds: expected 2 values, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(changes, message):
    values = records.to_dict(a_stage()) | changes
    with pytest.raises(ValueError, match=f"^{message}"):
        records.from_dict(Stage, values, where="stage")


def test_true_is_not_one_of_the_numbers():
    @dataclasses.dataclass(frozen=True)
    class Choice:
        x: Literal[0, 1]

    assert records.from_dict(Choice, {"x": 1}) == Choice(1)
    with pytest.raises(ValueError, match="x: True is not one of 0, 1"):
        records.from_dict(Choice, {"x": True})


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (np.zeros(2), "extra"),
        ({"a": [1, math.inf]}, r"extra\.a\[1\]"),
        ((math.nan,), r"extra\[0\]"),
        ({"a": {3: "b"}}, r"extra\.a: key 3"),
        (b"bytes", "extra"),
        (Grid, "extra"),
    ],
)
def test_values_without_a_json_form_are_refused_by_their_path(value, path):
    with pytest.raises(TypeError, match=f"^{path}"):
        records.to_dict(a_stage(extra=value))


def test_a_record_cannot_shadow_its_own_kind():
    @dataclasses.dataclass(frozen=True)
    class Named:
        kind: str

    with pytest.raises(TypeError, match="Named must not use this name"):
        records.to_dict(Named("x"))


def test_an_annotation_that_cannot_be_checked_is_refused_not_guessed():
    @dataclasses.dataclass(frozen=True)
    class Loose:
        x: set[int]

    with pytest.raises(TypeError, match="x: a record cannot have a field of type set"):
        records.from_dict(Loose, {"x": [1]})
