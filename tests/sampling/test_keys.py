"""A sample's noise depends on its seed, index, stage and purpose, and on nothing else."""

import binascii
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from fake_devices import printed_on

from imagen_video.sampling import keys

SHAPE = (3, 5, 7, 3)  # odd sizes, so that vector loops have remainders


def noise_of(seeds, indices, *, stage="base", step=None):
    stage_keys = keys.fold_in_name(keys.sample_keys(seeds=seeds, indices=indices), stage)
    if step is None:
        return np.asarray(keys.normal(keys.fold_in_name(stage_keys, "init"), SHAPE))
    return np.asarray(keys.normal(keys.fold_in_step(stage_keys, step), SHAPE))


def test_is_the_documented_chain_of_folds():
    key = jax.random.key(7, impl="threefry2x32")
    for data in (3, binascii.crc32(b"ssr1"), binascii.crc32(b"step"), 12):
        key = jax.random.fold_in(key, data)
    truth = jax.random.normal(key, SHAPE)
    np.testing.assert_array_equal(noise_of([7], [3], stage="ssr1", step=12)[0], truth)


@pytest.mark.parametrize("step", [None, 0, 255])
def test_bit_identical_alone_in_a_batch_and_in_any_order(step):
    together = noise_of([5, 5, 5, 9, 5], [0, 1, 2, 1, 3], step=step)
    for row, (seed, index) in enumerate([(5, 0), (5, 1), (5, 2), (9, 1), (5, 3)]):
        np.testing.assert_array_equal(noise_of([seed], [index], step=step)[0], together[row])
    np.testing.assert_array_equal(noise_of([5, 9], [2, 1], step=step), together[[2, 3]])


def test_compiled_and_traced_steps_give_the_same_bits():
    sample_keys = keys.sample_keys(seeds=[1, 2], indices=[0, 1])
    draw = lambda k, step: keys.normal(keys.fold_in_step(k, step), SHAPE)  # noqa: E731
    for step in (0, 17):
        np.testing.assert_array_equal(
            jax.jit(draw)(sample_keys, jnp.int32(step)), draw(sample_keys, step)
        )


def test_everything_in_the_chain_changes_the_noise():
    reference = noise_of([5], [0], stage="base", step=1)
    others = [
        noise_of([6], [0], stage="base", step=1),
        noise_of([5], [1], stage="base", step=1),
        noise_of([5], [0], stage="tsr1", step=1),
        noise_of([5], [0], stage="base", step=2),
        noise_of([5], [0], stage="base"),
    ]
    for other in others:
        assert abs(np.corrcoef(reference.ravel(), other.ravel())[0, 1]) < 0.3
        assert np.mean(reference == other) < 0.01


def test_noise_is_standard_normal_float32():
    sample_keys = keys.sample_keys(seeds=[0] * 4, indices=range(4))
    noise = keys.normal(keys.fold_in_name(sample_keys, "init"), (16, 24, 40, 3))
    assert noise.dtype == jnp.float32 and noise.shape == (4, 16, 24, 40, 3)
    for row in np.asarray(noise).reshape(4, -1):
        assert scipy.stats.kstest(row, "norm").pvalue > 1e-3


def test_noise_does_not_depend_on_precision_mode():
    single = noise_of([5], [0], step=1)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(noise_of([5], [0], step=1), single)


@pytest.mark.parametrize(
    ("seeds", "indices", "message"),
    [
        ([-1], [0], r"seeds: -1 must be in"),
        ([2**31], [0], r"seeds: 2147483648 must be in"),
        ([0], [-1], r"indices: -1 must be in"),
        ([0, 1], [0], r"seeds: 2 given for 1 indices"),
    ],
)
def test_rejects(seeds, indices, message):
    with pytest.raises(ValueError, match=message):
        keys.sample_keys(seeds=seeds, indices=indices)


# Without the checker of annotations, which comes first in tests and is not there for users.
FRACTIONS = """
import numpy as np
from imagen_video.sampling.keys import sample_keys
for wrong in (1.5, 2.0, "3", None):
    for arguments in ({"seeds": [wrong], "indices": [0]}, {"seeds": [0], "indices": [wrong]}):
        try:
            sample_keys(**arguments)
        except ValueError as error:
            print(error)
print((sample_keys(seeds=np.array([3]), indices=[0]) == sample_keys(seeds=[3], indices=[0])).all())
"""


def test_a_seed_that_is_no_whole_number_is_not_rounded():
    done = subprocess.run(
        [sys.executable, "-c", FRACTIONS], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"{name}: {wrong!r} is not a whole number"
        for wrong in (1.5, 2.0, "3", None)
        for name in ("seeds", "indices")
    ] + ["True"]


SHARDED = """
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from imagen_video.sampling import keys

    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)

    def draw(sample_keys, step):
        return keys.normal(keys.fold_in_step(sample_keys, step), (4, 6, 10, 3))

    sample_keys = keys.sample_keys(seeds=[3] * 4, indices=range(4))
    alone = np.concatenate([draw(sample_keys[i : i + 1], 9) for i in range(4)])
    for spec in (P("data"), P("data", "context"), P(None, "data", "context")):
        split = jax.jit(draw, out_shardings=NamedSharding(mesh, spec))(sample_keys, 9)
        assert len({str(shard.index) for shard in split.addressable_shards}) > 1
        np.testing.assert_array_equal(np.asarray(split), alone)
    print("sharded noise ok")
"""


def test_bit_identical_on_eight_devices():
    assert "sharded noise ok" in printed_on(8, SHARDED)
