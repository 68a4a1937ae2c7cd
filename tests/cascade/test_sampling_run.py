"""A request answered in a folder: its files, its manifest, and what a second call does."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from memory_bucket import buckets
from micro_cascade import BASE, SSR1, STAGES, TOKENS, TSR1, cascade, stage_model, text_model

from imagen_video.cascade.cascade import Cascade
from imagen_video.cascade.embedded_prompts import embed_and_free
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.sampling_run import SampleRequest, check_request, run_request
from imagen_video.cascade.stage import Grid
from imagen_video.text.text_model import TextPaths, load_text_model
from imagen_video.video_io import read_clip, to_uint8

REQUEST = SampleRequest(prompts=("A red circle!", "☃", "x" * 90), seed=2, through="tsr1")


class InterruptedRunError(Exception):
    """Stands for a kill."""


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def timeless(manifest):
    samples = [{k: v for k, v in s.items() if k != "seconds"} for s in manifest["samples"]]
    return manifest | {"samples": samples}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    out = tmp_path_factory.mktemp("answered") / "deep" / "out"
    manifest = run_request(cascade(), REQUEST, out, batch_size=2, save_stages=True)
    return out, manifest


def test_the_folder_holds_a_video_and_a_sheet_a_sample_and_the_manifest(answered):
    out, manifest = answered
    assert json.loads((out / "manifest.json").read_text()) == manifest
    names = ["0000-a-red-circle-0", "0001-video-0", f"0002-{'x' * 60}-0"]
    assert [sample["video"] for sample in manifest["samples"]] == [f"{n}.mp4" for n in names]
    files = {"manifest.json"}
    for name in names:
        files |= {f"{name}.mp4", f"{name}.png", f"{name}.base.mp4", f"{name}.tsr1.mp4"}
    assert set(contents(out)) == files  # nothing unfinished is left
    clip = read_clip(out / f"{names[0]}.mp4")
    assert clip.frames.shape == (8, 4, 8, 3) and clip.fps == TSR1.fps
    assert read_clip(out / f"{names[0]}.base.mp4").fps == 3


def test_the_manifest_says_how_each_sample_was_made(answered):
    _, manifest = answered
    first = manifest["samples"][0]
    assert (first["prompt"], first["seed"], first["index"]) == ("A red circle!", 2, 0)
    assert [sample["batch"] for sample in manifest["samples"]] == [2, 2, 1]
    assert first["seconds"].keys() == {"base", "tsr1"}
    for stage, entry in zip(STAGES, manifest["stages"], strict=False):
        output = stage.output
        assert entry["name"] == stage.name and entry["fps"] == stage.fps
        assert entry["shape"] == [output.frames, output.height, output.width, 3]
        assert entry["sampling"]["num_steps"] == 4
        assert entry["sampling"]["thresholding"] == {"kind": "StaticClip"}
        assert entry["weights"] == {m.stage.name: m.digest for m in cascade().models}[stage.name]
    assert [entry["name"] for entry in manifest["stages"]] == ["base", "tsr1"]
    assert manifest["request"]["options"]["guidance"] == "constant"


def test_the_videos_are_those_of_the_cascade_whatever_the_batch(answered):
    out, manifest = answered
    clips = cascade().sample(list(REQUEST.prompts), seeds=[2, 2, 2], through="tsr1")
    luma = (clips @ np.array([0.299, 0.587, 0.114])).reshape(3, -1)
    for row, sample in enumerate(manifest["samples"]):
        frames = read_clip(out / sample["video"]).frames
        read = (frames @ np.array([0.299, 0.587, 0.114])).ravel()
        likeness = [np.corrcoef(read, other)[0, 1] for other in luma]
        assert np.argmax(likeness) == row and likeness[row] > 0.95


def test_an_offloaded_encoder_is_gone_before_the_first_stage_and_changes_no_bit(answered, tmp_path):
    out, manifest = answered
    own = load_text_model(TextPaths(), num_tokens=TOKENS)
    before = [leaf.copy() for leaf in jax.tree.leaves(own.encoder.params)]
    gone = []

    def progress(*, stage, step, num_steps):
        gone.append(all(leaf.is_deleted() for leaf in jax.tree.leaves(own.encoder.params)))

    offloaded = run_request(
        dataclasses.replace(cascade(), text=own),
        REQUEST,
        tmp_path / "out",
        batch_size=2,
        save_stages=True,
        offload_text=True,
        progress=progress,
    )
    assert gone and all(gone) and not any(leaf.is_deleted() for leaf in before)
    assert timeless(offloaded) == timeless(manifest)
    videos = {name: file for name, file in contents(out).items() if name != "manifest.json"}
    assert {n: f for n, f in contents(tmp_path / "out").items() if n in videos} == videos
    # The control: without the flag the encoder stays.
    kept = load_text_model(TextPaths(), num_tokens=TOKENS)
    request = dataclasses.replace(REQUEST, prompts=REQUEST.prompts[:1], through="base")
    run_request(dataclasses.replace(cascade(), text=kept), request, tmp_path / "kept")
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept.encoder.params))


def test_prompts_that_were_not_embedded_ahead_are_named():
    text = load_text_model(TextPaths(), num_tokens=TOKENS)
    expected, mask = text.embed(["a star", "a circle"])
    embedded = embed_and_free(text, [["a star", "a circle"], ["a ring"]])
    assert embedded.digest == text_model().digest
    found = embedded.embed(("a star", "a circle"))
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], mask)
    with pytest.raises(ValueError, match=r"prompts: \['a circle'\] were not embedded"):
        embedded.embed(["a circle"])


def forbidden(**kwargs):
    raise AssertionError("sampled again")


def test_a_finished_request_is_not_run_again(answered):
    out, manifest = answered
    before = contents(out)
    again = run_request(cascade(), REQUEST, out, batch_size=2, progress=forbidden)
    assert again == manifest and contents(out) == before


def test_a_finished_request_without_its_files_is_not_taken_for_answered(tmp_path):
    request = dataclasses.replace(REQUEST, prompts=("a",), through="base")
    manifest = run_request(cascade(), request, tmp_path)
    with pytest.raises(ValueError, match="was sampled without its stages' clips"):
        run_request(cascade(), request, tmp_path, save_stages=True)
    video = tmp_path / manifest["samples"][0]["video"]
    before = video.read_bytes()
    video.unlink()
    with pytest.raises(ValueError, match=r"-0\.mp4: is gone; delete .*manifest\.json to sample"):
        run_request(cascade(), request, tmp_path)
    (tmp_path / "manifest.json").unlink()
    run_request(cascade(), request, tmp_path)
    assert video.read_bytes() == before


def test_a_resumed_request_without_files_of_its_first_batch_is_not_taken_for_answered(tmp_path):
    request = dataclasses.replace(REQUEST, prompts=("a", "b"), through="base")

    def interrupt(*, stage, step, num_steps):
        if any(tmp_path.glob("*-0.mp4")):
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        run_request(cascade(), request, tmp_path, batch_size=1, progress=interrupt)
    with pytest.raises(ValueError, match="was sampled without its stages' clips"):
        run_request(cascade(), request, tmp_path, batch_size=1, save_stages=True)
    (video,) = tmp_path.glob("*-0.mp4")
    video.unlink()
    with pytest.raises(ValueError, match=r"-0\.mp4: is gone; delete .*batch_00000\.json to"):
        run_request(cascade(), request, tmp_path, batch_size=1)


def test_two_unfinished_requests_do_not_share_a_folder(tmp_path):
    request = dataclasses.replace(REQUEST, prompts=("a", "b"), through="base")
    other = dataclasses.replace(request, seed=3)
    undisturbed = run_request(cascade(), request, tmp_path / "undisturbed", batch_size=1)

    def interrupt(*, stage, step, num_steps):
        raise InterruptedRunError

    def interrupt_second(*, stage, step, num_steps):
        if any(tmp_path.glob("out/*-0.mp4")):
            raise InterruptedRunError

    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):  # Nothing is kept, so nothing is in the way.
        run_request(cascade(), other, out, batch_size=1, progress=interrupt)
    with pytest.raises(InterruptedRunError):
        run_request(cascade(), request, out, batch_size=1, progress=interrupt_second)
    for check in (check_request, run_request):
        with pytest.raises(ValueError, match="out: holds what another request, batch size or"):
            check(cascade(), other, out, batch_size=1)
    assert timeless(run_request(cascade(), request, out, batch_size=1)) == timeless(undisturbed)
    videos = [sample["video"] for sample in undisturbed["samples"]]
    for name in videos:
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "after_videos"), [("base", 0), ("tsr1", 0), ("tsr1", 2)], ids=str
)
def test_an_interrupted_request_goes_on_to_the_same_bytes(tmp_path, answered, stage, after_videos):
    out, manifest = answered

    def interrupt(*, stage, step, num_steps, at=stage):
        videos = sum(not p.name.startswith(".") for p in tmp_path.glob("*-0.mp4"))
        if (stage, step) == (at, 3) and videos == after_videos:
            raise InterruptedRunError

    arguments = {"batch_size": 2, "save_every": 1, "save_stages": True}
    with pytest.raises(InterruptedRunError):
        run_request(cascade(), REQUEST, tmp_path, progress=interrupt, **arguments)
    assert not (tmp_path / "manifest.json").exists()
    steps = []

    def progress(*, stage, step, num_steps):
        steps.append((stage, step))

    resumed = run_request(cascade(), REQUEST, tmp_path, progress=progress, **arguments)
    assert steps[:2] == [(stage, 2), (stage, 3)]
    assert timeless(resumed) == timeless(manifest)
    assert {k: v for k, v in contents(tmp_path).items() if k != "manifest.json"} == {
        k: v for k, v in contents(out).items() if k != "manifest.json"
    }


@pytest.mark.parametrize("broken", [("tsr1", 3), None], ids=["killed", "undisturbed"])
def test_a_bucket_gets_the_bytes_that_a_folder_gets(answered, broken):
    out, manifest = answered
    url, steps = "gs://videos/a/b", []

    def progress(*, stage, step, num_steps):
        steps.append((stage, step))
        if steps.count(broken) == 1 and steps[-1] == broken:
            raise InterruptedRunError

    def run():
        arguments = {"batch_size": 2, "save_every": 1, "save_stages": True}
        return run_request(cascade(), REQUEST, url, progress=progress, **arguments)

    def in_bucket():
        return {name.removeprefix("/videos/a/b/"): file.getvalue() for name, file in store.items()}

    with buckets() as store:
        if broken:
            with pytest.raises(InterruptedRunError):
                run()
            assert any(".unfinished" in name for name in in_bucket())
            before = len(steps)
            result = run()
            assert steps[before : before + 2] == [("tsr1", 2), ("tsr1", 3)]
        else:
            result = run()
        left = in_bucket()
        assert run() == result and in_bucket() == left
    assert timeless(result) == timeless(manifest) == timeless(json.loads(left["manifest.json"]))
    expected = contents(out)
    assert left.keys() == expected.keys()
    assert all(left[name] == expected[name] for name in left if name != "manifest.json")


def test_another_request_into_the_same_folder_is_refused(answered):
    out, _ = answered
    before = contents(out)
    for change in (
        {"seed": 3},
        {"through": "ssr1"},
        {"prompts": ("a",)},
        {"options": SamplingOptions(steps=5)},
    ):
        other = dataclasses.replace(REQUEST, **change)
        with pytest.raises(ValueError, match="holds the videos of another request"):
            run_request(cascade(), other, out, batch_size=2)
    assert contents(out) == before


def test_a_second_run_in_the_folder_is_told_to_wait(tmp_path):
    request, calls = SampleRequest(prompts=("a",), through="base"), []

    def second(*, stage, step, num_steps):
        calls.append(step)
        with pytest.raises(ValueError, match=f"{tmp_path}: another run is at work there"):
            run_request(cascade(), request, tmp_path)

    manifest = run_request(cascade(), request, tmp_path, progress=second)
    assert calls and run_request(cascade(), request, tmp_path) == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_a_foreign_manifest_is_left_alone(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest of this library"):
        run_request(cascade(), REQUEST, tmp_path)
    assert contents(tmp_path) == {"manifest.json": text.encode()}


def test_samples_of_one_prompt_differ_and_do_not_depend_on_how_many_there_are(tmp_path):
    request = SampleRequest(prompts=("a", "b"), num_samples=2, through="base")
    manifest = run_request(cascade(), request, tmp_path, batch_size=4)
    assert [(s["prompt"], s["index"]) for s in manifest["samples"]] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    a0, a1, b0, _ = (read_clip(tmp_path / s["video"]).frames for s in manifest["samples"])
    assert (a0 != a1).any() and (a0 != b0).any()
    results = cascade().run(["a", "a", "b", "b"], indices=[0, 1, 0, 1], through="base")
    single = cascade().run(["a"], indices=[1], through="base")
    difference = to_uint8(np.asarray(results[0].clips[1])).astype(int) - to_uint8(
        np.asarray(single[0].clips[0])
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"save_every": 0}, "save_every: 0 is below 1"),
        ({"request": dataclasses.replace(REQUEST, through="tsr9")}, "no stage 'tsr9'"),
    ],
)
def test_arguments_out_of_range_leave_nothing_behind(tmp_path, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        run_request(**{"cascade": cascade(), "request": REQUEST, "out": out} | arguments)
    assert not out.exists()


def test_clips_that_no_mp4_can_hold_are_refused_before_sampling(tmp_path):
    odd = dataclasses.replace(BASE, output=Grid(frames=4, height=5, width=9))
    even = Grid(frames=4, height=10, width=18)
    doubled = dataclasses.replace(SSR1, input=odd.output, output=even)
    chain = Cascade(models=tuple(map(stage_model, (odd, doubled))), text=text_model())
    out, message = tmp_path / "out", "base.output: 4x5x9: an mp4 has an even height"
    last = dataclasses.replace(REQUEST, through="ssr1")
    check_request(chain, last, out)
    for refused in (
        lambda: run_request(chain, dataclasses.replace(REQUEST, through="base"), out),
        lambda: run_request(chain, last, out, save_stages=True),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not out.exists()


@pytest.mark.parametrize(
    ("field", "value"), [("prompts", ()), ("num_samples", 0), ("seed", -1), ("seed", 2**31)]
)
def test_impossible_requests_are_refused_by_field(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(REQUEST, **{field: value})
