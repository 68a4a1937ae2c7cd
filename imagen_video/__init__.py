"""Text to high-definition video by a cascade of seven diffusion models, in JAX and Flax."""

__version__ = "0.1.0"
