"""The Video U-Net: joint image and video rows, captions, sizes, scanned blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.array_types import Conditioning
from imagen_video.networks.blocks import is_scanned, stack_layers, unstack_layers
from imagen_video.networks.tiles import CLIPS_IN_TILES, FRAMES_IN_TILES, clip_order
from imagen_video.networks.unet import UNetConfig, VideoUNet, init_params
from imagen_video.profiling.flops import count_flops
from imagen_video.sharding.layout import Layout
from imagen_video.sharding.mesh import MeshShape, make_mesh

FRAMES, TOKENS = 4, 5
BASE = UNetConfig(
    stem_channels=16,
    channels=(16, 32),
    strides=(1, 2),
    num_blocks=(1, 3),
    attention=("none", "self"),
    attention_every_block=True,
    temporal="attention",
    max_frames=FRAMES,
    low_res=False,
    text_in_dim=12,
    text_dim=16,
    emb_dim=32,
    head_dim=8,
    groups=4,
)
SR = dataclasses.replace(
    BASE,
    attention=("none", "cross"),
    attention_every_block=False,
    temporal="convolution",
    low_res=True,
    space_to_depth=2,
)
KINDS = {"base": BASE, "sr": SR}
# One level, for what takes many programs or gradients; blocks scan where there are three.
ONE_LEVEL = {"stem_channels": 8, "channels": (8,), "strides": (2,), "num_blocks": (1,), "groups": 2}
SMALL_BASE = dataclasses.replace(BASE, attention=("self",), **ONE_LEVEL)
SMALL_SR = dataclasses.replace(SR, attention=("cross",), **ONE_LEVEL)
SCANNED_SR = dataclasses.replace(SMALL_SR, num_blocks=(3,))
SMALL_KINDS = {"base": SMALL_BASE, "sr": SCANNED_SR}


def redraw(params, seed=0):
    """Every parameter, zero-initialised ones too, drawn anew so that outputs are of order 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.ndim < 2:
            return jnp.asarray(rng.normal(0.5, 0.5, leaf.shape), jnp.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim != 3 else leaf.shape[0]
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(fan_in), leaf.shape), jnp.float32)

    return jax.tree.map(draw, params)


def abstract_params(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@functools.cache
def network(config):
    """Parameters and the network that has them, compiled once for all tests."""
    params = redraw(abstract_params(config))
    model = VideoUNet(config)
    return params, jax.jit(lambda *args: model.apply({"params": params}, *args))


@functools.cache
def gradient(config, layout=None):
    """Value and gradient of the mean square output, compiled once for all tests."""

    def loss(params, *args):
        return jnp.mean(VideoUNet(config, layout).apply({"params": params}, *args) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def inputs(config, batch=2, frames=FRAMES, height=16, width=24, seed=1):
    """Packed rows: every frame has its own caption, noise level and low-res image."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    captions = batch * frames
    lengths = rng.integers(1, TOKENS + 1, captions)
    cond = Conditioning(
        text_emb=normal(captions, TOKENS, config.text_in_dim),
        text_mask=jnp.asarray(np.arange(TOKENS) < lengths[:, None]),
        caption_index=jnp.arange(captions).reshape(batch, frames),
        is_image=jnp.ones(batch, bool),
        low_res=normal(batch, frames, height, width, 3) if config.low_res else None,
        low_res_logsnr=2 * normal(batch, frames) if config.low_res else None,
    )
    return normal(batch, frames, height, width, 3), 3 * normal(batch, frames), cond


def one_frame(cond, frame):
    """The same images alone: rows of one frame, flagged as images."""

    def cut(x):
        return None if x is None else x[:, frame : frame + 1]

    return dataclasses.replace(
        cond,
        caption_index=cut(cond.caption_index),
        low_res=cut(cond.low_res),
        low_res_logsnr=cut(cond.low_res_logsnr),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_packed_images_equal_the_same_images_one_by_one(kind):
    _, apply = network(KINDS[kind])
    z, logsnr, cond = inputs(KINDS[kind])
    packed = apply(z, logsnr, cond)
    assert 0.3 < float(packed.std()) < 30
    for frame in range(FRAMES):
        s = slice(frame, frame + 1)
        alone = apply(z[:, s], logsnr[:, s], one_frame(cond, frame))
        np.testing.assert_allclose(packed[:, s], alone, atol=1e-5 * float(packed.std()), rtol=1e-5)
    as_video = apply(z, logsnr, dataclasses.replace(cond, is_image=jnp.zeros(2, bool)))
    assert float(jnp.abs(as_video - packed).max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_frame_of_a_packed_row_changes_no_other(kind):
    _, apply = network(KINDS[kind])
    z, logsnr, cond = inputs(KINDS[kind])
    cond = dataclasses.replace(cond, is_image=jnp.array([True, False]))
    change = np.abs(apply(z.at[:, 1].multiply(-1.0), logsnr, cond) - apply(z, logsnr, cond))
    image, video = change.max(axis=(2, 3, 4))
    assert image[1] > 1e-2 and max(image[0], image[2], image[3]) == 0
    assert np.delete(video, 1).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_videos_equal_packed_form_with_shared_levels_and_caption(kind):
    config = KINDS[kind]
    _, apply = network(config)
    z, logsnr, cond = inputs(config)
    first = cond.caption_index[:, 0]
    videos = Conditioning(
        text_emb=cond.text_emb[first],
        text_mask=cond.text_mask[first],
        low_res=cond.low_res,
        low_res_logsnr=None if cond.low_res is None else cond.low_res_logsnr[:, 0],
    )
    mixed = dataclasses.replace(
        cond,
        caption_index=jnp.broadcast_to(first[:, None], (2, FRAMES)),
        is_image=jnp.zeros(2, bool),
        low_res_logsnr=None
        if cond.low_res is None
        else jnp.broadcast_to(cond.low_res_logsnr[:, :1], (2, FRAMES)),
    )
    plain = apply(z, logsnr[:, 0], videos)
    gathered = apply(z, jnp.broadcast_to(logsnr[:, :1], (2, FRAMES)), mixed)
    np.testing.assert_allclose(plain, gathered, atol=2e-5 * float(plain.std()), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_never_read_and_real_ones_are(kind):
    _, apply = network(KINDS[kind])
    z, logsnr, cond = inputs(KINDS[kind])
    noise = jax.random.normal(jax.random.key(5), cond.text_emb.shape)
    out = apply(z, logsnr, cond)

    def with_text(where):
        emb = jnp.where(where[..., None], noise, cond.text_emb)
        return apply(z, logsnr, dataclasses.replace(cond, text_emb=emb))

    np.testing.assert_array_equal(with_text(~cond.text_mask), out)
    assert float(jnp.abs(with_text(cond.text_mask) - out).max()) > 1e-2


@pytest.mark.parametrize("kind", SMALL_KINDS)
def test_an_empty_caption_gives_finite_outputs_and_gradients(kind):
    config = SMALL_KINDS[kind]
    z, logsnr, cond = inputs(config)
    cond = dataclasses.replace(cond, text_mask=jnp.zeros_like(cond.text_mask))
    value, grads = gradient(config)(network(config)[0], z, logsnr, cond)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["time", "low_res_time"])
def test_noise_levels_are_read(name):
    _, apply = network(SR)
    z, logsnr, cond = inputs(SR)
    changed = dataclasses.replace(cond, low_res_logsnr=cond.low_res_logsnr + 1)
    other = apply(z, logsnr + 1, cond) if name == "time" else apply(z, logsnr, changed)
    assert float(jnp.abs(other - apply(z, logsnr, cond)).max()) > 1e-2


def test_the_guidance_weight_is_read_by_models_distilled_for_it():
    config = dataclasses.replace(SMALL_BASE, guidance_weight=True)
    _, apply = network(config)
    z, logsnr, cond = inputs(config)
    low, high = (
        apply(z, logsnr, dataclasses.replace(cond, guidance_weight=jnp.full(2, w)))
        for w in (1.0, 15.0)
    )
    assert float(jnp.abs(low - high).max()) > 1e-2
    with pytest.raises(ValueError, match="guidance_weight"):
        apply(z, logsnr, cond)


def test_temporal_attention_knows_which_frame_is_before_which():
    _, apply = network(BASE)
    z, logsnr, cond = inputs(BASE)
    cond = dataclasses.replace(
        cond, is_image=jnp.zeros(2, bool), caption_index=cond.caption_index[:, :1].repeat(FRAMES, 1)
    )
    logsnr = jnp.broadcast_to(logsnr[:, :1], logsnr.shape)
    backwards = apply(z[:, ::-1], logsnr, cond)[:, ::-1]
    assert float(jnp.abs(backwards - apply(z, logsnr, cond)).max()) > 1e-2


@pytest.mark.parametrize("kind, project_skips", [("base", False), ("sr", True)])
def test_scanned_blocks_and_blocks_by_themselves_are_the_same_function(kind, project_skips):
    # Skips are joined at the upper level only, so there the scanned blocks follow one of their own.
    scanned = dataclasses.replace(KINDS[kind], num_blocks=(3, 3), project_skips=project_skips)
    flat_config = dataclasses.replace(scanned, scan_blocks=False)
    params, apply = network(scanned)
    assert {name for name in params if is_scanned(name)} == {
        *("down_0_all", "down_1_all", "up_1_all", "up_0_all" if project_skips else "up_0_rest")
    }
    z, logsnr, cond = inputs(scanned)
    flat = unstack_layers(params)
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(flat_config))
    assert jax.tree.map(jnp.shape, flat) == shapes
    out = jax.jit(VideoUNet(flat_config).apply)({"params": flat}, z, logsnr, cond)
    expected = apply(z, logsnr, cond)
    np.testing.assert_allclose(out, expected, atol=2e-5 * float(expected.std()), rtol=1e-5)
    again = stack_layers(flat)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_an_unrolled_loop_is_the_same_function_of_the_same_parameters():
    # Of the upper level, where one block stands apart before those that the way up scans.
    small = {"stem_channels": 8, "channels": (8, 16), "groups": 2}
    scanned = dataclasses.replace(SR, num_blocks=(3, 3), remat="products", **small)
    unrolled = dataclasses.replace(scanned, unrolled_levels=1)
    args = (network(scanned)[0], *inputs(scanned))
    lowered = [gradient(config).lower(*args) for config in (scanned, unrolled)]
    loops, barriers = (
        [one.as_text().count(f"stablehlo.{name}") for one in lowered]
        for name in ("while", "optimization_barrier")
    )
    # Two levels, down and up, for the loss and for its gradient.
    assert loops == [8, 4]
    # Outside a loop nothing else keeps what is recomputed from being merged with what was there.
    assert barriers[1] > barriers[0]
    (loss, grads), (other_loss, other_grads) = (one.compile()(*args) for one in lowered)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), other_grads, grads
    )


@pytest.mark.parametrize(
    "kind, remat",
    [
        ("sr", "blocks"),
        pytest.param("sr", "products", marks=pytest.mark.slow),
        ("base", "products"),
    ],
)
def test_rematerialisation_changes_no_gradient(kind, remat):
    config = SMALL_KINDS[kind]
    args = (network(config)[0], *inputs(config))
    _, found = gradient(dataclasses.replace(config, remat=remat))(*args)
    _, expected = gradient(config)(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


@pytest.mark.parametrize(
    "kind, rows, order",
    [
        ("sr", 2, FRAMES_IN_TILES),
        pytest.param("sr", 8, CLIPS_IN_TILES, marks=pytest.mark.slow),
        ("base", 8, CLIPS_IN_TILES),
    ],
)
def test_in_the_orders_of_tpus_the_network_is_the_same_function(kind, rows, order, monkeypatch):
    # A CPU that calls itself a TPU takes its orders, and computes them as they are written.
    monkeypatch.setattr(Layout, "on_tpu", True)
    layout = Layout(mesh=make_mesh(MeshShape(fsdp=1), jax.devices()[:1]))
    config = dataclasses.replace(SMALL_KINDS[kind], remat="products")
    z, logsnr, cond = inputs(config, batch=rows)
    cond = dataclasses.replace(cond, is_image=jnp.arange(rows) % 2 == 0)
    assert clip_order(layout, z) == order
    params = network(config)[0]
    (loss, found), (expected_loss, expected) = (
        gradient(config, where)(params, z, logsnr, cond) for where in (layout, None)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(leaf, other, rtol=2e-3, atol=2e-3 * scale)


def test_initialised_network_predicts_zero():
    @jax.jit
    def initialise_and_apply(*args):
        params = init_params(SMALL_SR, jax.random.key(0))
        return VideoUNet(SMALL_SR).apply({"params": params}, *args)

    np.testing.assert_array_equal(initialise_and_apply(*inputs(SMALL_SR)), 0)


def test_any_size_that_the_strides_divide_runs_and_others_are_refused_by_multiple():
    _, apply = network(SMALL_SR)
    for height, width in ((8, 4), (20, 12)):
        z, logsnr, cond = inputs(SMALL_SR, height=height, width=width)
        assert apply(z, logsnr, cond).shape == z.shape
    z, logsnr, cond = inputs(SMALL_SR, height=18)
    with pytest.raises(ValueError, match="height: 18 is not a multiple of 4"):
        apply(z, logsnr, cond)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("strides", (1,), "strides: 1 entries"),
        ("stem_channels", 18, "18 is not a multiple of groups"),
        ("head_dim", 12, "head_dim"),
        ("num_blocks", (1, 0), "num_blocks"),
        ("groups", 0, "groups: 0 is below 1"),
        ("channels", (0, 32), r"channels: \(0, 32\) has an entry below 1"),
        ("channels", (), "channels: there are no levels"),
        ("max_frames", 0, "max_frames: 0 is below 1"),
        ("space_to_depth", 0, "space_to_depth: 0 is below 1"),
        ("unrolled_levels", -1, "unrolled_levels: -1 is not in 0 to 2"),
        ("unrolled_levels", 3, "unrolled_levels: 3 is not in 0 to 2"),
    ],
)
def test_impossible_configurations_are_refused_by_field(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **{field: value})


def test_flops_of_scanned_and_flat_networks_agree():
    z, logsnr, cond = inputs(BASE)
    flat = dataclasses.replace(BASE, scan_blocks=False)
    scanned_flops, flops = (
        count_flops(VideoUNet(c).apply, {"params": abstract_params(c)}, z, logsnr, cond)
        for c in (BASE, flat)
    )
    assert scanned_flops == flops > 0
