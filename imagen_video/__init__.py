"""Text to high-definition video by a cascade of seven diffusion models, in JAX and Flax."""

import importlib

__version__ = "0.1.0"

# Where each public name lives. They are loaded when first used, so that importing the package, as
# every command and every module does, imports neither JAX nor the networks.
_PUBLIC = {
    "frechet_distance": "imagen_video.metrics.frechet",
    "load_cascade": "imagen_video.loading",
}


def __getattr__(name: str):
    """Loads a public name from its module on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    """Lists the public names, loaded or not."""
    return sorted([*globals(), *_PUBLIC])
