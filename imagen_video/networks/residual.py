"""The sum of a residual branch and what it goes around."""

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# What rematerialisation knows the sums by.
SUM = "residual_sum"


def residual(
    h: Float[Array, "*clip c"], branch: Float[Array, "*clip c"]
) -> Float[Array, "*clip c"]:
    """Returns h + branch, which a rematerialised backward pass finds instead of the branch.

    A block's last sum needs no name: it is the next block's input, which is found as it is.
    """
    return checkpoint_name(h + branch, SUM)
