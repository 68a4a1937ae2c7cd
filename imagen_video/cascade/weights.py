"""A stage's weights in one file that is enough to sample: safetensors with its Stage inside."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagen_video import records
from imagen_video.cascade.stage import Stage, stage_param_axes, stage_param_shapes
from imagen_video.files import atomic_path, downloaded
from imagen_video.sharding import processes
from imagen_video.sharding.layout import Layout

METADATA_KEY = "imagen_video"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StageModel:
    """A stage with parameters.

    Loaded ones lie in the host's memory, and on devices only while the stage is sampled, so that a
    chip needs room for the largest stage of a cascade and not for all of them.

    Attributes:
      stage: what the parameters are of.
      params: nested dict of arrays: numpy's in the stage's `sample_param_dtype` as loaded, float32
        on devices while they are trained.
      text_digest: names the tokenizer and encoder that the stage was trained with.
      layout: how parameters and clips are spread over devices; None for one device.
    """

    stage: Stage
    params: Any
    text_digest: str
    layout: Layout | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Names stage and parameters, to the bit: equal digests mean equal samples."""
        digest = hashlib.sha256(json.dumps(records.to_dict(self.stage), sort_keys=True).encode())
        for name, value in sorted(_flat(self.params).items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + value.tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """What a weights file says of its tensors.

    Attributes:
      format_version: of the file.
      stage: as in `StageModel`.
      text_digest: likewise.
    """

    format_version: int
    stage: Stage
    text_digest: str


def make_stage_model(stage: Stage, params: Mapping[str, Any], *, text_digest: str) -> StageModel:
    """Binds parameters to a stage, cast to its `sample_param_dtype`.

    Raises:
      ValueError: naming a tensor that is missing, unknown or of another shape.
    """
    check_params(stage, params)
    dtype = jnp.dtype(stage.sample_param_dtype)
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype, copy=False), dict(params))
    return StageModel(stage=stage, params=params, text_digest=text_digest)


def on_devices(model: StageModel) -> Any:
    """Returns the model's parameters where its layout has them, on one device without a layout."""
    if model.layout is None:
        return jax.device_put(model.params)
    shardings = model.layout.params(stage_param_axes(model.stage), model.params)
    return processes.placed(model.params, shardings)


def save_stage(
    path: str, stage: Stage, params: Mapping[str, Any], *, text_digest: str, dtype: str
) -> None:
    """Writes a stage as one safetensors file; an existing file is replaced whole or not at all.

    Args:
      path: ends in .safetensors; on a disk or in a bucket (gs://).
      stage: what the parameters are of.
      params: as trained, of any float dtype.
      text_digest: as in `StageModel`.
      dtype: the tensors are stored in: "float32", "bfloat16" or "float16".

    Raises:
      ValueError: naming a tensor that is missing, unknown or of another shape.
    """
    check_params(stage, params)
    header = WeightsHeader(format_version=FORMAT_VERSION, stage=stage, text_digest=text_digest)
    tensors = {
        name: np.asarray(value).astype(jnp.dtype(dtype)) for name, value in _flat(params).items()
    }
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={METADATA_KEY: json.dumps(records.to_dict(header))})


def load_stage(path: str, *, param_dtype: str | None = None) -> StageModel:
    """Reads a file that `save_stage` wrote, on a disk or in a bucket (gs://).

    Args:
      path: of the file.
      param_dtype: the stage's `sample_param_dtype`, and that of the parameters; None for the stored
        one, which may have fewer bits than the file.

    Raises:
      ValueError: naming the file, and the tensor or field that is wrong.
    """
    try:
        with downloaded(path) as local, safe_open(local, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise ValueError(f"{path}: holds no stage, only tensors")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such weights file") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    try:
        header = _header(json.loads(text))
        stage, params = header.stage, traverse_util.unflatten_dict(tensors, sep="/")
        if param_dtype is not None:
            stage = dataclasses.replace(stage, sample_param_dtype=param_dtype)
        return make_stage_model(stage, params, text_digest=header.text_digest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _header(values: Any) -> WeightsHeader:
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version {version}, this library reads {FORMAT_VERSION}")
    return records.from_dict(WeightsHeader, values)


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def check_params(stage: Stage, params: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first tensor that is missing, unknown or of another shape."""
    found, expected, name = _flat(params), _flat(stage_param_shapes(stage)), stage.name
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            raise ValueError(f"{path}: missing from the weights of {name}")
        if path not in expected:
            raise ValueError(f"{path}: not a parameter of {name}")
        if tuple(found[path].shape) != tuple(expected[path].shape):
            raise ValueError(
                f"{path}: shape {tuple(found[path].shape)}, {name} has {expected[path].shape}"
            )
