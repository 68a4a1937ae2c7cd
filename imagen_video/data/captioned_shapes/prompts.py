"""Held-out prompts: what a trained model is asked for to see whether it understood."""

from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.source import make_scene


def held_out_prompts(count: int, *, seed: int, objects: int = 1) -> list[str]:
    """Draws captions of unstyled test videos, each a combination no training scene has shown.

    They follow the test split's distribution; a repeated caption is drawn again.

    Args:
      count: number of prompts.
      seed: of the draws.
      objects: one or two in each scene.

    Raises:
      ValueError: objects is neither 1 nor 2.
    """
    if objects not in (1, 2):
        raise ValueError(f"objects: {objects} is neither 1 nor 2")
    mixture = Mixture(two_objects=float(objects == 2))
    prompts: dict[str, None] = {}
    index = 0
    while len(prompts) < count:
        scene = make_scene(index, seed=seed, split="test", is_image=False, mixture=mixture)
        prompts[scene.caption.text] = None
        index += 1
    return list(prompts)
