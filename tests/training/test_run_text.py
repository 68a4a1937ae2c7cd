"""Cached embeddings and an encoder that runs along are one run; mixing text models is refused."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from micro_cascade import BASE, drawn_params, text_model
from small_epoch import STAGE, run_of

from imagen_video import records
from imagen_video.cascade.embedding import embed_captions
from imagen_video.networks import conditioning
from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.t5_weights import save_t5
from imagen_video.training import stage_run as stage_run_module
from imagen_video.training.objectives import DenoisingConfig, denoising_loss
from imagen_video.training.run_text import (
    cache_of,
    check_same_text,
    encode_fn,
    frozen_params,
    load_run_text,
)
from imagen_video.training.stage_run import (
    make_batches,
    train_stage,
    training_captions,
    unseen_videos,
)
from imagen_video.training.state import init_state
from imagen_video.training.step import make_train_step

PROGRAM = pathlib.Path(__file__).parents[1] / "sharded_training.py"


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("embeddings") / "cache"
    embed_captions(training_captions(run_of()), text_model(), root, shard_captions=16)
    return root


def test_a_run_on_images_alone_has_the_captions_of_clips_too_for_it_is_sampled_on_them():
    run = run_of()
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, image_share=1.0))
    captions = [
        caption.lower() for caption in training_captions(run)
    ]  # as the tokenizer reads them
    for tokens in unseen_videos(run, text_model(), count=4)["tokens"]:
        shown = text_model().tokenizer.decode(tokens)  # truncated, if it is long
        assert any(caption.startswith(shown) for caption in captions)


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory):
    """The package's encoder with one of its layers turned round."""
    params = jax.tree.map(lambda x: x, text_model().encoder.params)
    kernel = params["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    params["encoder"]["layers_1"]["mlp"]["wo"]["kernel"] = -kernel
    path = tmp_path_factory.mktemp("other") / "encoder.safetensors"
    save_t5(str(path), make_frozen_t5(text_model().encoder.config, params))
    return path


def test_both_routes_give_the_same_losses_and_another_encoder_does_not(
    tmp_path, cache, other_encoder
):
    found = {}
    for name, run in {
        "cached": run_of(cache=cache),
        "encoded": run_of(),
        "other": run_of(encoder=str(other_encoder)),
    }.items():
        text = load_run_text(run.text, num_tokens=STAGE.text_tokens)
        state = train_stage(run, text=text, workdir=str(tmp_path / name))
        found[name] = losses(tmp_path / name)
        assert len(found[name]) == 4 and int(state.skipped) == 0
    difference = np.abs(found["cached"] - found["encoded"])
    print("loss, cached and encoded:", found["cached"], difference.max())
    assert difference.max() < 1e-5 * found["encoded"].max()
    # Zero-initialised projections hide the captions in the first step, and little shows in four.
    assert np.abs(found["other"] - found["encoded"]).max() > 1e-4


@pytest.mark.slow
def test_the_network_rounds_what_it_reads_and_nobody_else_does(cache, monkeypatch):
    params, config = drawn_params(BASE), DenoisingConfig(loss="v_mse", caption_dropout=0.0)

    def loss_and_gradient(run):
        run = dataclasses.replace(run, stage=BASE)
        text = load_run_text(run.text, num_tokens=BASE.text_tokens)

        @jax.jit
        @jax.value_and_grad
        def loss(params, batch, *frozen):
            encode = encode_fn(text, *frozen)
            return denoising_loss(BASE, config, params, encode, batch, jax.random.key(3))[0]

        loss, grads = loss(params, make_batches(run, text)[0], *frozen_params(text))
        # Of the projection of embeddings; the loss alone averages most of a difference away.
        return float(loss), np.asarray(grads["context"]["text_in"]["kernel"])

    def difference():
        loss, grad = loss_and_gradient(run_of())
        return abs(loss - cached_loss), np.abs(grad - cached_grad).max() / np.abs(cached_grad).max()

    cached_loss, cached_grad = loss_and_gradient(run_of(cache=cache))
    loss, grad = difference()
    assert loss < 1e-5 * cached_loss and grad < 5e-5
    # Controls: without the rounding, and with embeddings turned round.
    monkeypatch.setattr(conditioning, "as_cached", lambda text_emb: text_emb.astype(jnp.float32))
    assert difference()[1] > 1e-4
    monkeypatch.setattr(conditioning, "as_cached", lambda text_emb: -text_emb.astype(jnp.float32))
    assert difference()[1] > 1e-2


@pytest.mark.slow
def test_the_encoders_parameters_are_arguments_of_the_step_and_not_constants(monkeypatch):
    class Handed(Exception):  # noqa: N818
        pass

    def train(**kwargs):
        raise Handed(kwargs)

    monkeypatch.setattr(stage_run_module, "train", train)
    with pytest.raises(Handed) as raised:
        train_stage(run_of(), text=text_model(), workdir="unused")
    (handed,) = raised.value.args
    state = init_state(handed["init_fn"], optax.sgd(0.1), seed=0)
    step = make_train_step(handed["loss_fn"], optax.sgd(0.1), ema_decay=0.9, run_seed=0)
    program = jax.make_jaxpr(step)(state, handed["batches"][0], *handed["frozen"])

    def constants(jaxpr):
        inner = [p for eqn in jaxpr.jaxpr.eqns for p in eqn.params.values()]
        inner = [p for p in inner if hasattr(p, "consts") and hasattr(p, "jaxpr")]
        return sum(np.size(c) for c in jaxpr.consts) + sum(map(constants, inner))

    count = sum(leaf.size for leaf in jax.tree.leaves(text_model().encoder.params))
    assert constants(program) < 0.01 * count
    # The control: the same program around parameters that are closed over.
    whole = functools.partial(step, state, handed["batches"][0])
    closed = jax.make_jaxpr(lambda: whole(*handed["frozen"]))()
    assert constants(closed) > count
    assert state.params.keys() == handed["init_fn"](jax.random.key(0)).keys()  # none is trained


@pytest.mark.slow
def test_eight_devices_train_with_an_encoder_in_parts_as_one_does(tmp_path, cache):
    run = run_of(num_steps=2, batch_size=8)
    train_stage(run, text=text_model(), workdir=str(tmp_path / "one"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), str(cache)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["share"] < 0.14
    for name in ("encoded", "cached"):
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-4)


def test_batches_from_a_cache_hold_the_embeddings_of_their_tokens(cache):
    text = text_model()
    run = run_of(cache=cache)
    cached = make_batches(run, load_run_text(run.text, num_tokens=12))
    encoded = make_batches(run_of(), text)
    for k in (0, 7):
        ours, truth = cached[k], encoded[k]
        for name in truth:
            np.testing.assert_array_equal(ours[name], truth[name], err_msg=name)
        expected = np.asarray(text.encoder(truth["tokens"]))
        mask = truth["tokens"] > 0
        assert mask[:, 0].all() and not mask.all()
        found = ours["text_emb"].astype(np.float32)
        np.testing.assert_allclose(found[mask], expected[mask], rtol=2.0**-8 + 1e-5, atol=1e-5)
        assert not found[~mask].any()
    assert frozen_params(load_run_text(run.text, num_tokens=12)) == ()


def test_reading_processes_read_the_cache_too(cache):
    run = run_of(cache=cache)
    text = load_run_text(run.text, num_tokens=12)
    expected = make_batches(run, text)[1]["text_emb"]
    workers = dataclasses.replace(run, data=dataclasses.replace(run.data, num_workers=1))
    batches = make_batches(workers, text)
    next(batches)
    found = next(batches)["text_emb"]
    batches.close()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


def test_a_caption_that_the_cache_lacks_is_named(tmp_path, cache):
    run = run_of(cache=cache, scenes=1000)
    with pytest.raises(ValueError, match=r"holds no embedding of the caption 'a .*background"):
        train_stage(run, text=text_model(), workdir=str(tmp_path / "work"))


def test_a_cache_of_another_text_model_is_refused_naming_both(tmp_path, cache, other_encoder):
    run = run_of(cache=cache, encoder=str(other_encoder))
    both = f"{text_model().digest[:12]} .encoder embedded.*but the run reads .*{other_encoder}"
    with pytest.raises(ValueError, match=both):
        load_run_text(run.text, num_tokens=STAGE.text_tokens)
    text = load_run_text(run_of(encoder=str(other_encoder)).text, num_tokens=STAGE.text_tokens)
    with pytest.raises(ValueError, match=both):
        train_stage(run, text=text, workdir=str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_a_cache_of_another_caption_length_is_refused(cache):
    with pytest.raises(ValueError, match=r"captions of up to 12 tokens, stage\.text_tokens is 13"):
        load_run_text(run_of(cache=cache).text, num_tokens=13)
    paths = run_of(cache=cache).text
    assert cache_of(dataclasses.replace(text_model(), paths=paths)).root == cache


def test_an_encoder_in_a_bucket_is_known_by_its_address(tmp_path, cache):
    file = cache / "header.json"
    header, names = (
        file.read_text(),
        {"encoder": "gs://bucket/t5", "tokenizer": "gs://bucket/model"},
    )
    try:
        file.write_text(json.dumps(json.loads(header) | names))
        paths = dataclasses.replace(run_of(cache=cache).text, **names)
        assert load_run_text(paths, num_tokens=12).digest == text_model().digest
    finally:
        file.write_text(header)


@pytest.mark.slow
def test_a_work_directory_of_another_text_model_is_refused(tmp_path, cache, other_encoder):
    run = run_of(cache=cache, num_steps=1)
    train_stage(run, text=text_model(), workdir=str(tmp_path / "work"))
    other = run_of(encoder=str(other_encoder))
    text = load_run_text(other.text, num_tokens=STAGE.text_tokens)
    both = f"{text_model().digest[:12]} .encoder embedded.*but the run reads .*{other_encoder}"
    with pytest.raises(ValueError, match=both):
        train_stage(other, text=text, workdir=str(tmp_path / "work"))
    next_run = run_of(encoder=str(other_encoder), init_from=str(tmp_path / "work"))
    with pytest.raises(ValueError, match=both):
        train_stage(next_run, text=text, workdir=str(tmp_path / "next"))
    # The checkpoints know it too.
    (tmp_path / "work" / "config.json").unlink()
    with pytest.raises(ValueError, match=both):
        train_stage(other, text=text, workdir=str(tmp_path / "work"))
    # The same text model may go on, with the encoder running along.
    train_stage(run_of(num_steps=2), text=text_model(), workdir=str(tmp_path / "work"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"run": {"text": ',
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"run": {"text": {"encoder": "here"}}}',
        b'{"run": {"text": "here"}}',
        b'{"run": {"text": {"encoder": "a", "tokenizer": "b"}}, "text_digest": 3}',
    ],
    ids=range(10),
)
def test_a_work_directory_with_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: d(amaged|oes not say)") as caught:
        check_same_text(str(tmp_path), text_model())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tsr3"}, "holds a run of tsr3, not of tsr1; use another folder"),
        ({"prediction": "eps"}, r"stage\.prediction is eps, in this config it is v"),
    ],
)
def test_a_work_directory_of_another_stage_is_refused(tmp_path, fields, message):
    """Two stages may have parameters of the same shapes."""
    run = run_of(num_steps=1)
    other = dataclasses.replace(run, stage=dataclasses.replace(run.stage, **fields))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config = {"run": records.to_dict(other), "text_digest": text_model().digest}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        train_stage(run, text=text_model(), workdir=str(tmp_path))


def test_a_rung_of_a_ladder_says_what_it_was_trained_with(tmp_path):
    """Its config holds the text model's paths with the ladder, not with the rung."""
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    paths = {"encoder": "there", "tokenizer": "there too"}
    config = {"run": {"name": "guided"}, "ladder": {"text": paths}, "text_digest": "0" * 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    both = f"000000000000 .encoder there, tokenizer there too.*{text_model().digest[:12]}"
    with pytest.raises(ValueError, match=both):
        check_same_text(str(tmp_path), text_model())
