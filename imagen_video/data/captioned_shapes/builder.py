"""The dataset as a TFDS builder, for those who want it on disk as ArrayRecord files.

Record i of a split is sample i of a `CaptionedShapesSource`. Writing and reading
(`builder.as_data_source`) need no TensorFlow.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from imagen_video.data.captioned_shapes.mixture import Mixture
from imagen_video.data.captioned_shapes.source import VERSION, CaptionedShapesSource


@dataclasses.dataclass(eq=False)
class CaptionedShapesConfig(tfds.core.BuilderConfig):
    """What is written.

    Attributes:
      height, width: pixels.
      frames: of a clip; images have one.
      fps: frames per second.
      duration: seconds over which the whole motion takes place.
      seed: of the scenes.
      videos, images: training samples of each kind; a tenth as many test samples, at least one.
      mixture: how often each kind of caption occurs.
    """

    height: int = 96
    width: int = 160
    frames: int = 64
    fps: float = 24.0
    duration: float = 64 / 24
    seed: int = 0
    videos: int = 1000
    images: int = 1000
    mixture: Mixture = Mixture()


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
    """Procedural captioned clips of shapes, letters and words that move.

    Splits: train and test (clips), train_images and test_images (stills). Pixels are stored
    without loss, deflated. Another size is another `CaptionedShapesConfig`, given as `config`.
    """

    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    BUILDER_CONFIGS = (
        CaptionedShapesConfig(name="96x160", description="64 frames of 96x160 at 24 fps"),
        CaptionedShapesConfig(
            name="24x40",
            description="16 frames of 24x40 at 3 fps: what a full-size base model is trained on",
            height=24,
            width=40,
            frames=16,
            fps=3.0,
            duration=128 / 24,
            videos=10_000,
            images=10_000,
        ),
    )

    # Nothing is downloaded. (To look for checksums TFDS would need importlib_resources, which it
    # does not install on Python 3.9 and later.)
    url_infos = None

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        """Makes a builder; the arguments are TFDS's."""
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        video = tfds.features.Tensor(
            shape=(None, config.height, config.width, 3),
            dtype=np.uint8,
            encoding=tfds.features.Encoding.ZLIB,
        )
        features = {
            "video": video,
            "caption": tfds.features.Text(),
            "is_image": tfds.features.Scalar(np.bool_),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record i is sample i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        sizes = {
            ("train", False): config.videos,
            ("test", False): max(1, config.videos // 10),
            ("train", True): config.images,
            ("test", True): max(1, config.images // 10),
        }
        return {
            f"{split}_images" if is_image else split: self._generate_examples(split, is_image, size)
            for (split, is_image), size in sizes.items()
        }

    def _generate_examples(self, split: str, is_image: bool, size: int) -> Iterator:
        config = self.builder_config
        source = CaptionedShapesSource(
            split=split,
            height=config.height,
            width=config.width,
            frames=1 if is_image else config.frames,
            fps=config.fps,
            duration=config.duration,
            is_image=is_image,
            seed=config.seed,
            size=size,
            mixture=config.mixture,
        )
        for index in range(size):
            yield index, source[index]
