"""What a user asks for against each stage's own defaults."""

import dataclasses

import jaxtyping
import pytest
from micro_cascade import BASE, OSCILLATING, SAMPLING, SSR1, TSR1

from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage import STAGE_NAMES
from imagen_video.cascade.stage_choice import chosen_stages
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip


def test_nothing_asked_changes_nothing():
    for stage in (BASE, TSR1, SSR1):
        assert SamplingOptions().sampling(stage) is stage.sampling


def test_oscillating_guidance_applies_where_a_stage_has_it():
    options = SamplingOptions(guidance="oscillating")
    assert options.sampling(BASE) == OSCILLATING
    assert options.sampling(SSR1) == SSR1.sampling
    assert SamplingOptions(guidance="oscillating:base").sampling(BASE) == OSCILLATING
    others = SamplingOptions(guidance="oscillating:tsr1,ssr1")
    assert others.sampling(BASE) == BASE.sampling
    with pytest.raises(ValueError, match="guidance: this ssr1 has no oscillating preset"):
        others.sampling(SSR1)


def test_thresholding_asked_for_outweighs_what_goes_with_the_guidance():
    static = SamplingOptions(guidance="oscillating", thresholding="static").sampling(BASE)
    assert static == dataclasses.replace(OSCILLATING, thresholding=StaticClip())
    dynamic = SamplingOptions(thresholding="dynamic").sampling(SSR1)
    assert dynamic == dataclasses.replace(SSR1.sampling, thresholding=DynamicThreshold())


def test_published_steps_are_256_for_the_base_and_128_for_the_others():
    options = SamplingOptions(steps="published")
    assert [options.sampling(s).num_steps for s in (BASE, TSR1, SSR1)] == [256, 128, 128]
    assert SamplingOptions(steps=3).sampling(BASE) == dataclasses.replace(SAMPLING, num_steps=3)


def test_distilled_weights_are_sampled_in_their_own_steps_and_in_no_others():
    student = dataclasses.replace(BASE, oscillating=None, distilled_steps=4)
    for steps in (None, 4, "published"):  # Beside originals, which take the published number.
        assert SamplingOptions(steps=steps).sampling(student) == SAMPLING
    assert SamplingOptions(thresholding="static").sampling(student) == SAMPLING
    with pytest.raises(ValueError, match=r"thresholding: 'dynamic', but .* with StaticClip"):
        SamplingOptions(thresholding="dynamic").sampling(student)
    with pytest.raises(ValueError, match=r"steps: 8, but .* base were distilled for 4"):
        SamplingOptions(steps=8).sampling(student)
    with pytest.raises(ValueError, match=r"distilled_steps: 8, but sampling\.num_steps is 4"):
        dataclasses.replace(student, distilled_steps=8)


def test_groups_of_stages_stand_alone():
    assert chosen_stages("sr", field="distilled") == {*STAGE_NAMES} - {"base"}
    assert chosen_stages("base,tsr1", field="distilled") == {"base", "tsr1"}
    with pytest.raises(ValueError, match=r"^distilled: 'sr' is none of base, tsr1, "):
        chosen_stages("base,sr", field="distilled")


@pytest.mark.parametrize(
    "field",
    [
        {"guidance": "high"},
        {"guidance": "oscillating:"},
        {"guidance": "oscillating:ssr2"},
        {"guidance": "oscillating:tsr4"},
        {"thresholding": "none"},
        {"steps": 0},
        {"steps": "many"},
    ],
)
def test_what_is_no_option_is_refused_by_name(field):
    (name,) = field
    # The types are checked first where, as in tests, they are checked at all.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=name):
        SamplingOptions(**field)
