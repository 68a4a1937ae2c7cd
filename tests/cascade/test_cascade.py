"""The chain of stages: what fits, what is refused, and going on from kept stages and states."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from micro_cascade import BASE, SSR1, STAGES, TSR1, cascade, stage_model, text_model

from imagen_video.cascade.cascade import Cascade, check_chain
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage_sampler import make_conditioning, make_sampler, run_steps
from imagen_video.cascade.store import DirectoryStore
from imagen_video.diffusion.guidance import ConstantGuidance
from imagen_video.profiling.flops import count_flops
from imagen_video.sampling import keys as sampling_keys
from imagen_video.video_io import to_uint8

PROMPTS = ["a red circle moving left on a white background", "ein Kreis ☃"]


class InterruptedRunError(Exception):
    """Stands for a kill between two steps."""


def stop_at(stage_name, at):
    def progress(*, stage, step, num_steps):
        if (stage, step) == (stage_name, at):
            raise InterruptedRunError

    return progress


@pytest.fixture(scope="module")
def whole():
    return cascade().run(PROMPTS, seeds=[1, 1], indices=[0, 1])


def test_every_stage_makes_clips_on_its_grid(whole):
    assert [result.stage for result in whole] == ["base", "tsr1", "ssr1"]
    for stage, result in zip(STAGES, whole):
        output = stage.output
        assert result.clips.shape == (2, output.frames, output.height, output.width, 3)
        assert np.abs(result.clips).max() <= 1 and np.std(result.clips) > 0.1
        assert result.seconds > 0


def test_sample_returns_the_last_clips_as_pixels(whole):
    seen = []

    def progress(*, stage, step, num_steps):
        seen.append((stage, step, num_steps))

    pixels = cascade().sample(PROMPTS, seeds=[1, 1], indices=[0, 1], progress=progress)
    np.testing.assert_array_equal(pixels, to_uint8(np.asarray(whole[-1].clips)))
    assert seen == [(stage.name, step, 4) for stage in STAGES for step in range(5)]
    base = cascade().sample(PROMPTS, seeds=[1, 1], indices=[0, 1], through="base")
    np.testing.assert_array_equal(base, to_uint8(np.asarray(whole[0].clips)))


def test_a_later_stage_reads_the_one_before_and_the_prompt(whole):
    one = cascade().run(PROMPTS, seeds=[2, 1], indices=[0, 1], through="tsr1")
    for before, after in zip(whole, one):
        difference = np.abs(np.asarray(before.clips) - np.asarray(after.clips)).max(
            axis=(1, 2, 3, 4)
        )
        assert difference[0] > 1e-2 and difference[1] < 1e-3
    other = cascade().run([PROMPTS[1], PROMPTS[1]], seeds=[1, 1], indices=[0, 1], through="base")
    difference = np.abs(np.asarray(other[0].clips) - np.asarray(whole[0].clips))
    assert difference[0].max() > 1e-2


@pytest.mark.parametrize(("stage", "at"), [("base", 3), ("tsr1", 1), ("ssr1", 4)])
def test_a_run_goes_on_where_it_was(tmp_path, whole, stage, at):
    arguments = {"seeds": [1, 1], "indices": [0, 1], "save_every": 1}
    store = DirectoryStore(root=tmp_path / "kept")
    with pytest.raises(InterruptedRunError):
        cascade().run(PROMPTS, store=store, progress=stop_at(stage, at), **arguments)
    steps = []

    def progress(*, stage, step, num_steps):
        steps.append((stage, step))

    resumed = cascade().run(PROMPTS, store=store, progress=progress, **arguments)
    # The step that was interrupted had not been kept, the one before it had.
    assert steps[:2] == [(stage, at - 1), (stage, at)]
    names = [result.stage for result in whole]
    for before, after in zip(whole, resumed):
        np.testing.assert_array_equal(before.clips, after.clips)
        finished = names.index(after.stage) < names.index(stage)
        assert (after.seconds == 0) == finished
    assert sorted(path.name for path in store.root.iterdir()) == [
        "base.npz",
        "ssr1.npz",
        "tsr1.npz",
    ]
    # With all stages kept nothing is run at all.
    again = cascade().run(PROMPTS, store=store, progress=stop_at("base", 1), **arguments)
    np.testing.assert_array_equal(again[-1].clips, whole[-1].clips)
    store.clear()
    assert not store.root.exists()


def test_a_damaged_kept_file_is_named(tmp_path):
    (tmp_path / "base.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"base\.npz: cannot be read, delete it"):
        cascade().run(PROMPTS, store=DirectoryStore(root=tmp_path))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((BASE, SSR1), r"ssr1\.input: 8x4x8, but base\.output is 4x4x8"),
        (
            (BASE, dataclasses.replace(TSR1, text_tokens=7)),
            r"tsr1\.text_tokens: 7, but base has 12",
        ),
        (
            (BASE, dataclasses.replace(TSR1, name="ssr2"), dataclasses.replace(SSR1, name="tsr1")),
            "stages: base, ssr2, tsr1; their order is base, tsr1, ssr2",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_by_name(stages, message):
    check_chain(STAGES)
    with pytest.raises(ValueError, match=message):
        check_chain(stages)


def test_a_cascade_begins_with_the_base_and_reads_one_text_model():
    for models in ((), (stage_model(SSR1),)):
        with pytest.raises(ValueError, match="must be the base model"):
            Cascade(models=models, text=text_model())
    stranger = dataclasses.replace(stage_model(BASE), text_digest="0123456789abcdef")
    with pytest.raises(ValueError, match=f"base: .*0123456789ab.*{text_model().digest[:12]}"):
        Cascade(models=(stranger,), text=text_model())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts: there are none"),
        ({"prompts": "ab"}, "prompts: 'ab' is one string, not a list of them"),
        ({"seeds": [0]}, "seeds: 1 given"),
        ({"indices": [0]}, "1 indices"),
        ({"seeds": [0, 2**31]}, "seeds: 2147483648"),
        ({"through": "tsr9"}, "through: no stage 'tsr9'; there are base, tsr1, ssr1"),
        ({"options": SamplingOptions(steps=2), "save_every": 0}, "save_every: 0 is below 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_it_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        cascade().run(**{"prompts": PROMPTS} | arguments)


def test_all_zero_guidance_is_a_program_with_one_evaluation_a_step():
    keys = sampling_keys.sample_keys(seeds=[0], indices=[0])
    text_emb, text_mask = text_model().embed(PROMPTS[:1])
    params = stage_model(BASE).params
    flops = []
    for weight in (0.0, 2.0):
        sampling = dataclasses.replace(BASE.sampling, guidance=ConstantGuidance(weight=weight))
        cond = make_conditioning(
            BASE, sampling, text_emb=text_emb, text_mask=text_mask, low_res=None, keys=keys
        )
        state = make_sampler(BASE, sampling).init(keys, shape=(4, 4, 8, 3))
        flops.append(
            count_flops(
                lambda *args, s=sampling, c=cond: run_steps(BASE, s, *args, cond=c, keys=keys),
                params,
                state,
                jnp.int32(1),
            )
        )
    assert flops[1] == 2 * flops[0] > 0
