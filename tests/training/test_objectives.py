"""The denoising loss: what the network is given, what it is measured by, what it may not see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from micro_cascade import BASE, SSR1, TOKENS, TSR1, drawn_params

from imagen_video import resample
from imagen_video.array_types import Conditioning
from imagen_video.cascade.stage import Grid, denoise_fn, low_res_condition
from imagen_video.diffusion import losses, process
from imagen_video.sampling import keys as row_keys
from imagen_video.training.objectives import DenoisingConfig, denoising_loss, embed_captions

KEY = jax.random.key(7)
BLANK = dataclasses.replace(TSR1, fill="blank", output=Grid(frames=8, height=8, width=16))


def encode(tokens):
    """Stands for the frozen encoder: each token its own embedding, padding included."""
    table = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    return jnp.asarray(table)[tokens]


def make_batch(stage, rows=4, *, images=(), seed=0, constant=None):
    """Rows in the layout of `data.pipeline.Batches`; those in `images` pack their frames."""
    rng = np.random.default_rng(seed)
    output = stage.output
    x = rng.uniform(-1, 1, (rows, output.frames, output.height, output.width, 3))
    if constant is not None:
        x = np.full_like(x, constant)
    counts = [output.frames if row in images else 1 for row in range(rows)]
    lengths = rng.integers(1, TOKENS + 1, (sum(counts), 1))
    tokens = rng.integers(1, 64, (sum(counts), TOKENS)) * (np.arange(TOKENS) < lengths)
    batch = {"video": x.astype(np.float32), "tokens": tokens.astype(np.int32)}
    batch["row"] = np.arange(rows, dtype=np.int32)
    if images:
        slots = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        batch["is_image"] = np.isin(np.arange(rows), images)
        index = [np.broadcast_to(s, (output.frames,)) for s in slots]
        batch["caption_index"] = np.stack(index).astype(np.int32)
        ids = [row * output.frames + i for row, n in enumerate(counts) for i in range(n)]
        batch["caption_id"] = np.array(ids, np.int32)
    return jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnames=("stage", "config"))
def loss_of(stage, params, batch, config):
    return denoising_loss(stage, config, params, encode, batch, KEY)[0]


def draws(stage, batch, purpose):
    """Log-SNRs of the rows, float64 [b f 1 1 1], by the recipe of the docstring."""
    frames = stage.output.frames
    rows = []
    for row, number in enumerate(batch["row"]):
        key = row_keys.fold_in_name(jax.random.fold_in(KEY, number)[None], purpose)[0]
        if "is_image" in batch:
            t = np.asarray(jax.random.uniform(key, (frames,)))
            t = t if batch["is_image"][row] else np.full(frames, t[0])
        else:
            t = np.full(frames, jax.random.uniform(key, ()))
        # The cosine schedule in [-20, 20], by its definition.
        low, high = np.arctan(np.exp(-10.0)), np.arctan(np.exp(10.0))
        rows.append(-2 * np.log(np.tan(low + t.astype(np.float64) * (high - low))))
    return np.stack(rows)[..., None, None, None]


def noise(batch, purpose, shape):
    keys = [jax.random.fold_in(KEY, number) for number in batch["row"]]
    named = [row_keys.fold_in_name(key[None], purpose)[0] for key in keys]
    return np.stack([jax.random.normal(key, shape) for key in named]).astype(np.float64)


def alpha_sigma(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


class Seen(list):
    """What the loss hands to the network, in whose place are the answers of `params`, or zeros."""

    def bind(self, stage, params, *, layout=None):
        def denoise(z_t, logsnr_t, cond):
            self.append((z_t, logsnr_t, cond))
            return params(z_t, logsnr_t) if callable(params) else jnp.zeros_like(z_t)

        return denoise

    def loss_of(self, stage, config, answer, batch):
        return denoising_loss(stage, config, answer, encode, batch, KEY, bind=self.bind)[0]


@pytest.fixture
def seen():
    return Seen()


@pytest.mark.parametrize("images", [(), (1, 3)], ids=["videos", "mixed"])
@pytest.mark.parametrize("loss", ["v_mse", "eps_mse"])
def test_a_network_that_predicts_zero_has_the_loss_of_its_target(seen, images, loss):
    batch = make_batch(BASE, images=images)
    found = seen.loss_of(BASE, DenoisingConfig(loss=loss), None, batch)
    logsnr = draws(BASE, batch, "t")
    alpha, sigma = alpha_sigma(logsnr)
    eps = noise(batch, "eps", batch["video"].shape[1:])
    v = alpha * eps - sigma * np.asarray(batch["video"])
    expected = np.mean(v**2 * (1 if loss == "v_mse" else alpha**2))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("images", [(), (1, 3)], ids=["videos", "mixed"])
def test_r_mse_is_the_error_of_what_the_network_itself_predicts(images):
    """The stage's v against a bare network, whose target is solved for by its definition."""
    stage = dataclasses.replace(SSR1, low_res_error=0.3)
    batch, params = make_batch(stage, images=images), drawn_params(stage)
    found = loss_of(stage, params, batch, DenoisingConfig(loss="r_mse"))

    x, shape = np.asarray(batch["video"], np.float64), batch["video"].shape[1:]
    logsnr_t, logsnr_a = draws(stage, batch, "t"), draws(stage, batch, "augmentation")
    (alpha, sigma), (alpha_a, sigma_a) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_a)
    eps = noise(batch, "eps", shape)
    z_t = alpha * x + sigma * eps
    small = resample.resize(batch["video"], height=shape[1] // 2, width=shape[2] // 2)
    low_res = alpha_a * np.asarray(small) + sigma_a * noise(batch, "low_res", small.shape[1:])
    low_res = np.asarray(resample.resize(jnp.asarray(low_res), height=shape[1], width=shape[2]))
    # Two normal accounts of x, one around the low-res clip and one around z_t, are one.
    e2 = sigma_a**2 + alpha_a**2 * 0.3**2
    precision = 1 / e2 + alpha**2 / sigma**2
    mean = (alpha_a * low_res / e2 + alpha * z_t / sigma**2) / precision
    r = (mean - x) * np.sqrt(precision)

    emb, mask = embed_captions(batch, encode=encode, dropout=0.1, key=KEY)
    cond = Conditioning(
        text_emb=emb,
        text_mask=mask,
        caption_index=batch.get("caption_index"),
        is_image=batch.get("is_image"),
        low_res=jnp.asarray(low_res, jnp.float32),
        low_res_logsnr=jnp.asarray(logsnr_a[:, :, 0, 0, 0], jnp.float32),
    )
    bare = denoise_fn(dataclasses.replace(stage, low_res_error=None), params)
    r_hat = bare(jnp.asarray(z_t, jnp.float32), jnp.asarray(logsnr_t[:, :, 0, 0, 0]), cond)
    np.testing.assert_allclose(found, np.mean((np.asarray(r_hat) - r) ** 2), rtol=1e-3)


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
@pytest.mark.parametrize("images", [(), (0,)], ids=["videos", "mixed"])
def test_the_perfect_denoiser_of_constant_clips_has_no_loss(seen, prediction, images):
    constant = 0.25

    def perfect(z_t, logsnr_t):
        shape = (*logsnr_t.shape, *[1] * (5 - logsnr_t.ndim))
        alpha, sigma = alpha_sigma(np.asarray(logsnr_t, np.float64).reshape(shape))
        eps = (np.asarray(z_t, np.float64) - alpha * constant) / sigma
        answers = {"v": alpha * eps - sigma * constant, "eps": eps, "x": 0 * eps + constant}
        return jnp.asarray(answers[prediction], jnp.float32)

    stage = dataclasses.replace(BASE, prediction=prediction)
    batch = make_batch(stage, images=images, constant=constant)
    config = DenoisingConfig(loss="v_mse")
    loss = seen.loss_of(stage, config, perfect, batch)
    assert loss < 1e-6
    wrong = seen.loss_of(stage, config, lambda z, t: perfect(z, t) + 0.1, batch)
    assert wrong > 1e-3


@pytest.mark.parametrize("images", [(), (0, 2)], ids=["videos", "mixed"])
@pytest.mark.parametrize("stage", [TSR1, BLANK, SSR1], ids=["tsr", "blank", "ssr"])
def test_training_takes_the_road_that_sampling_takes(seen, stage, images):
    batch = make_batch(stage, images=images)
    seen.loss_of(stage, DenoisingConfig(), None, batch)
    (_, _, cond), x = seen[0], batch["video"]
    k, output, small = stage.frame_factor, stage.output, stage.input
    level = draws(stage, batch, "augmentation")
    reduced = jax.image.resize(x, (*x.shape[:2], small.height, small.width, 3), "bilinear")
    reduced = np.asarray(reduced)
    if not images:
        reduced, level = reduced[:, ::k], level[:, ::k]
    alpha, sigma = alpha_sigma(level)
    noisy = alpha * reduced + sigma * noise(batch, "low_res", reduced.shape[1:])
    shape = (*noisy.shape[:2], output.height, output.width, 3)
    large = np.asarray(jax.image.resize(jnp.asarray(noisy, jnp.float32), shape, "bilinear"))
    every = large[:, ::k] if images else large
    expected = np.repeat(every, k, axis=1)
    if stage.fill == "blank":
        expected[:, np.arange(output.frames) % k != 0] = 0
    for row in images:
        expected[row] = large[row]
    np.testing.assert_allclose(cond.low_res, expected, atol=1e-5)
    told = np.asarray(cond.low_res_logsnr)
    np.testing.assert_allclose(
        told,
        level[:, : told.shape[1] if images else 1, 0, 0, 0].reshape(told.shape),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_crop_is_conditioned_on_its_own_crop(seen):
    batch = make_batch(SSR1)
    batch = batch | {"video": batch["video"][:, :4, :4, 4:12]}
    seen.loss_of(SSR1, DenoisingConfig(), None, batch)
    z_t, logsnr_t, cond = seen[0]
    assert z_t.shape == cond.low_res.shape == (4, 4, 4, 8, 3) and logsnr_t.shape == (4,)


def test_levels_of_packed_images_are_their_own_and_of_videos_shared(seen):
    batch = make_batch(TSR1, images=(1,))
    seen.loss_of(TSR1, DenoisingConfig(), None, batch)
    _, logsnr_t, cond = seen[0]
    for level in (logsnr_t, cond.low_res_logsnr):
        assert len(np.unique(level[1])) == 8
        assert all(len(np.unique(level[row])) == 1 for row in (0, 2, 3))
        assert len(np.unique(level[:, 0])) == 4
    assert (np.asarray(logsnr_t) != np.asarray(cond.low_res_logsnr)).all()


def test_a_tenth_of_the_captions_is_dropped_each_by_its_own_number():
    count = 20_000
    batch = {"tokens": jnp.ones((count, 1), jnp.int32), "row": jnp.arange(count)}
    emb, mask = embed_captions(batch, encode=encode, dropout=0.1, key=KEY)
    kept = np.asarray(mask[:, 0])
    # Four standard deviations of a binomial share.
    assert abs(1 - kept.mean() - 0.1) < 4 * np.sqrt(0.09 / count)
    np.testing.assert_array_equal(np.asarray(emb).any(axis=(1, 2)), kept)
    other = embed_captions(batch, encode=encode, dropout=0.1, key=jax.random.key(8))[1]
    assert 0.15 < np.mean(kept != np.asarray(other)[:, 0]) < 0.21  # 2 * 0.1 * 0.9
    # A caption keeps its fate wherever it stands.
    order = np.random.default_rng(0).permutation(count)
    moved = {"tokens": batch["tokens"], "row": batch["row"][order]}
    again = embed_captions(moved, encode=encode, dropout=0.1, key=KEY)[1]
    np.testing.assert_array_equal(again[:, 0], kept[order])
    packed = {"tokens": batch["tokens"], "row": jnp.zeros(1, int), "caption_id": batch["row"]}
    again = embed_captions(packed, encode=encode, dropout=0.1, key=KEY)[1]
    np.testing.assert_array_equal(again[:, 0], kept)


def test_padding_and_dropped_captions_are_never_read():
    params, batch = drawn_params(BASE), make_batch(BASE, images=(1,))

    @jax.jit
    def loss(table, dropout):
        config = DenoisingConfig(loss="v_mse", caption_dropout=0.0)
        given = {**batch, "tokens": batch["tokens"] * (1 - dropout)}
        return denoising_loss(BASE, config, params, lambda t: table[t], given, KEY)[0]

    table = jax.random.normal(jax.random.key(1), (64, 128))
    other_words = table.at[1:].multiply(-1.0)
    other_padding = table.at[0].set(9.0)
    assert loss(table, 0) == loss(other_padding, 0)
    assert abs(loss(table, 0) - loss(other_words, 0)) > 1e-3
    assert loss(table, 1) == loss(other_words, 1)


def permuted(batch, order):
    """The same rows, with their captions, in another order."""
    by_row = {name: x[order] for name, x in batch.items() if name not in ("tokens", "caption_id")}
    return {name: batch[name] for name in ("tokens", "caption_id") if name in batch} | by_row


def test_the_loss_does_not_depend_on_order_or_cut():
    params, batch = drawn_params(TSR1), make_batch(TSR1, images=(1, 2))
    config = DenoisingConfig(loss="v_mse", caption_dropout=0.5)
    whole = loss_of(TSR1, params, batch, config)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        loss_of(TSR1, params, permuted(batch, order), config), whole, rtol=1e-6
    )
    renumbered = permuted(batch, order) | {"row": batch["row"]}
    assert abs(loss_of(TSR1, params, renumbered, config) - whole) > 1e-2
    halves = [permuted(batch, np.array(half)) for half in ([0, 1], [2, 3])]
    cut = np.mean([loss_of(TSR1, params, half, config) for half in halves])
    np.testing.assert_allclose(cut, whole, rtol=2e-6)


@pytest.mark.parametrize("stage", [BLANK, SSR1], ids=["tsr", "ssr"])
def test_packed_images_are_conditioned_and_measured_as_one_by_one(stage):
    rng = np.random.default_rng(3)
    output = stage.output
    f, h, w = output.frames, output.height, output.width

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    x, eps = jnp.tanh(normal(1, f, h, w, 3)), normal(1, f, h, w, 3)
    small = jax.image.resize(x, (1, f, stage.input.height, stage.input.width, 3), "bilinear")
    given = {
        "x": x,
        "eps": eps,
        "small": small,
        "small_eps": normal(*small.shape),
        "logsnr": normal(1, f),
        "augmentation": normal(1, f),
        "caption_index": jnp.arange(f)[None],
    }
    text_emb, text_mask = normal(f, TOKENS, 128), jnp.ones((f, TOKENS), bool)
    params = drawn_params(stage)

    @jax.jit
    def row_loss(row, is_image):
        z_t = process.diffuse(x=row["x"], eps=row["eps"], logsnr_t=row["logsnr"])
        low_res = low_res_condition(
            stage,
            row["small"],
            eps=row["small_eps"],
            logsnr=row["augmentation"],
            height=h,
            width=w,
            is_image=is_image,
        )
        cond = Conditioning(
            text_emb=text_emb,
            text_mask=text_mask,
            caption_index=row["caption_index"],
            is_image=is_image,
            low_res=low_res,
            low_res_logsnr=row["augmentation"],
        )
        v_hat = denoise_fn(stage, params)(z_t, row["logsnr"], cond)
        return losses.v_model_loss(
            v_hat, x=row["x"], eps=row["eps"], logsnr_t=row["logsnr"], loss="v_mse"
        )

    packed = row_loss(given, jnp.array([True]))
    # Alone in the sense of the network: a batch of f rows with one frame each.
    each = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), given)
    alone = row_loss(each, jnp.ones(f, bool))
    assert alone.shape == (f, 1)
    np.testing.assert_allclose(alone[:, 0], packed[0], rtol=1e-4)
    np.testing.assert_allclose(alone.mean(), packed.mean(), rtol=1e-5)
    as_video = row_loss(given, jnp.array([False]))
    assert np.abs(as_video - packed).max() > 1e-2


@pytest.mark.parametrize("images", [(), range(200)], ids=["videos", "images"])
def test_times_are_logit_normal_where_asked_for(seen, images):
    config = DenoisingConfig(logit_normal=(0.6, 1.5))
    batch = make_batch(BASE, 200, images=images)
    seen.loss_of(BASE, config, None, batch)
    seen.loss_of(BASE, DenoisingConfig(), None, batch)
    logsnr, uniform = (np.asarray(call[1], np.float64).ravel() for call in seen)
    low, high = np.arctan(np.exp(-10.0)), np.arctan(np.exp(10.0))
    t, u = ((np.arctan(np.exp(-x / 2)) - low) / (high - low) for x in (logsnr, uniform))
    logit = np.log(t / (1 - t))
    assert scipy.stats.kstest(logit[:: len(logit) // 200], "norm", (0.6, 1.5)).pvalue > 0.01
    # The quantile that the row's own uniform draw names: rows still draw alone.
    np.testing.assert_allclose(scipy.stats.norm.cdf(logit, 0.6, 1.5), u, atol=1e-3)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"caption_dropout: 1\.5 is outside"):
        DenoisingConfig(caption_dropout=1.5)
    with pytest.raises(ValueError, match=r"logit_normal: the deviation 0\.0 is not positive"):
        DenoisingConfig(logit_normal=(0.5, 0.0))
