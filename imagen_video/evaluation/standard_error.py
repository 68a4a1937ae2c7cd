"""A mean and how far it may be from the truth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def mean_and_error(
    values: Sequence[float] | Float[np.ndarray, " n"],
) -> tuple[float, float | None]:
    """Returns the mean of n independent values and its standard error, s / sqrt(n).

    s^2 is the unbiased variance, over n - 1; of a single value there is no error.
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values)))
