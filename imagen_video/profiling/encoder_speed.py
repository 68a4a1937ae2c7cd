"""How well the text encoder uses the devices here: its FLOPs a second beside a matrix product's."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video.profiling.description import count_text_encoder_params
from imagen_video.text.t5_encoder import T5Config

SIZE = 2048  # of the matrices: busies every core, and takes a slow one a second
REPEATS = 9


def share_of_peak(config: T5Config, tokens_per_second: float) -> str:
    """Times a large matrix product and returns a line with the share of its speed that is reached.

    The product's speed on this machine, beside whatever else runs there, stands for the peak.

    Args:
      config: of the encoder; its compute dtype is the product's.
      tokens_per_second: real tokens, over all devices.
    """
    reached = 2 * count_text_encoder_params(config) * tokens_per_second
    peak = matmul_flops_per_second(config.dtype)
    return (
        f"{reached / 1e9:.3g} GFLOP/s, {reached / peak:.1%} of the {peak / 1e9:.3g} that a large"
        f" matrix product in {config.dtype} reaches here"
    )


def matmul_flops_per_second(dtype: str) -> float:
    """Returns FLOP/s, 2 for a multiply-add, of a median product of this process's devices."""
    a, b = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return jax.local_device_count() * 2 * SIZE**3 / float(np.median(seconds))
