"""Thresholding: the percentile equals numpy's, and needs neither sort nor gather nor all-gather."""

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import printed_on
from hypothesis import strategies as st

from imagen_video import records
from imagen_video.diffusion import thresholding
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip

percentile_fn = jax.jit(thresholding.percentile_of_magnitude, static_argnames="percentile")
statistics_fn = jax.jit(thresholding.adjacent_order_statistics, static_argnames="rank")


def numpy_percentile(x: np.ndarray, percentile: float) -> np.ndarray:
    return np.percentile(np.abs(x).reshape(x.shape[0], -1), percentile, axis=1)


def test_numbers():
    x = jnp.asarray([-3, -1, -0.5, 0, 0.5, 1, 2, 4]).reshape(1, 2, 2, 2, 1)
    s = percentile_fn(x, percentile=99.5)
    np.testing.assert_array_equal(s, np.float32([3.965]))
    np.testing.assert_allclose(
        DynamicThreshold()(x).ravel(),
        [-0.7566204, -0.2522068, -0.1261034, 0, 0.1261034, 0.2522068, 0.5044136, 1],
        atol=1e-7,
    )
    np.testing.assert_array_equal(DynamicThreshold()(0.2 * x), 0.2 * x)


def test_packed_images_are_thresholded_one_by_one():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 3)), jnp.float32)
    x = x * jnp.asarray([1.0, 2.0, 4.0])[:, None, None, None]
    for kind in (DynamicThreshold(percentile=90.0), StaticClip(), NoThreshold()):
        found = jax.jit(kind)(x, jnp.asarray([False, True]))
        np.testing.assert_array_equal(found[0], kind(x[:1])[0])
        for frame in range(3):
            np.testing.assert_array_equal(found[1, frame], kind(x[1:, frame : frame + 1])[0, 0])
    jointly = DynamicThreshold(percentile=90.0)(x)
    assert (
        np.abs(jointly[1] - DynamicThreshold(percentile=90.0)(x, jnp.ones(2, bool))[1]).max() > 0.1
    )


# No product of the interpolation is subnormal, which chips may flush to 0, and no sum overflows.
MAGNITUDES = st.just(0.0) | st.floats(2.0**-80, 2.0**120, width=32)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    # Few shapes and percentiles, so that few programs are compiled.
    x=st.sampled_from([(2, 1), (1, 2), (3, 7), (1, 40)]).flatmap(
        lambda shape: hypothesis.extra.numpy.arrays(np.float32, shape, elements=MAGNITUDES)
    ),
    percentile=st.sampled_from([0.0, 37.5, 99.5, 100.0]),
)
def test_any_values_equal_numpy(x, percentile):
    x[:, ::2] *= -1
    got = percentile_fn(x, percentile=percentile)
    np.testing.assert_array_equal(got, numpy_percentile(x, percentile))


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 5, 10**6]),
    percentile=st.sampled_from([50.0, 95.0, 99.5]),
)
def test_ties_equal_numpy(seed, levels, percentile):
    rng = np.random.default_rng(seed)
    scale = np.float32(np.exp(rng.uniform(-5, 5)))
    x = (rng.integers(-levels, levels + 1, (4, 3, 5, 7, 3)) * scale).astype(np.float32)
    got = percentile_fn(x, percentile=percentile)
    np.testing.assert_array_equal(got, numpy_percentile(x, percentile))


@pytest.mark.parametrize("size", [2, 8, 333])
@pytest.mark.parametrize("percentile", [90.0, 99.5, 99.9])
def test_many_random_rows_equal_numpy_to_the_last_bit(size, percentile):
    x = np.random.default_rng(0).normal(size=(5000, size)).astype(np.float32) * 3
    got = percentile_fn(x, percentile=percentile)
    np.testing.assert_array_equal(got, numpy_percentile(x, percentile))


def test_more_values_than_float32_can_count():
    x = np.random.default_rng(0).standard_normal((1, 2**24 + 100_005), np.float32)
    got = percentile_fn(x, percentile=99.5)
    np.testing.assert_array_equal(got, numpy_percentile(x, 99.5))


def test_order_statistics_are_those_of_the_sorted_values():
    x = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    x[1] = np.round(x[1])  # ties
    x[2, :10] = np.float32(1e-42)  # subnormal
    x[2, 10:13] = np.inf
    ordered = np.sort(np.abs(x), axis=1)
    for rank in (0, 1, 9, 24, 46, 48):
        lower, upper = statistics_fn(x, rank=rank)
        np.testing.assert_array_equal(
            np.asarray(lower).view(np.int32), ordered[:, rank].view(np.int32)
        )
        np.testing.assert_array_equal(
            np.asarray(upper).view(np.int32), ordered[:, rank + 1].view(np.int32)
        )
    for last in statistics_fn(x, rank=49):
        np.testing.assert_array_equal(last, ordered[:, -1])


def test_samples_do_not_mix_and_frames_do():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 3)) * 2, jnp.float32)
    out = DynamicThreshold()(x)
    other = DynamicThreshold()(x.at[1].multiply(5))
    np.testing.assert_array_equal(out[0], other[0])
    louder_frame = DynamicThreshold()(x.at[0, 0].multiply(5))
    assert np.abs(louder_frame[0, 1:] - out[0, 1:]).max() > 1e-2


def test_static_clip_and_none():
    x = jnp.asarray([-3.0, -0.5, 0.5, 1.5]).reshape(1, 1, 2, 2, 1)
    np.testing.assert_array_equal(StaticClip()(x).ravel(), [-1, -0.5, 0.5, 1])
    np.testing.assert_array_equal(NoThreshold()(x), x)


def primitives(jaxpr) -> set[str]:
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            names |= primitives(inner)
    return names


def test_program_has_no_sort_and_no_gather():
    x = jax.ShapeDtypeStruct((2, 16, 24, 40, 3), jnp.float32)
    names = primitives(jax.make_jaxpr(DynamicThreshold())(x).jaxpr)
    assert "reduce_sum" in names  # the walk goes into the loop
    forbidden = {"sort", "gather", "top_k", "dynamic_slice", "cumsum", "scatter"}
    assert not names & forbidden
    reference = primitives(jax.make_jaxpr(lambda x: jnp.percentile(x, 99.5))(x).jaxpr)
    assert reference & forbidden  # the walk would have seen them


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from imagen_video.diffusion.thresholding import DynamicThreshold

    assert jax.device_count() == 8
    mesh = jax.make_mesh((2, 4), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    x = 2 * np.random.default_rng(0).normal(size=(2, 8, 24, 40, 3)).astype(np.float32)
    alone = np.asarray(jax.jit(DynamicThreshold())(x))
    for spec in (P("data", "context"), P("data", None, "context"), P(None, ("data", "context"))):
        sharding = NamedSharding(mesh, spec)
        split = jax.device_put(x, sharding)
        program = jax.jit(DynamicThreshold(), out_shardings=sharding).lower(split).compile()
        hlo = program.as_text()
        assert "all-reduce" in hlo
        for word in ("all-gather", "all-to-all", "collective-permute", "sort("):
            assert word not in hlo, (spec, word)
        np.testing.assert_array_equal(np.asarray(program(split)), alone)
    # The search would find it: numpy's way gathers the clip.
    naive = jax.jit(lambda x: jnp.percentile(jnp.abs(x), 99.5, axis=(1, 2, 3, 4)))
    assert "all-gather" in naive.lower(split).compile().as_text()
    print("sharded thresholding ok")
"""


def test_sharded_clip_is_never_gathered():
    assert "sharded thresholding ok" in printed_on(8, SHARDED)


def test_records_and_errors():
    for record in (NoThreshold(), StaticClip(), DynamicThreshold(percentile=95.0)):
        assert records.from_dict(type(record), records.to_dict(record)) == record
    for percentile in (0.0, -1.0, 100.5):
        with pytest.raises(ValueError, match=r"percentile: .* must be in"):
            DynamicThreshold(percentile=percentile)
    too_many = jax.ShapeDtypeStruct((1, 2**31), jnp.float32)
    with pytest.raises(ValueError, match="2147483648 values"):
        jax.eval_shape(lambda x: thresholding.percentile_of_magnitude(x, percentile=50.0), too_many)
