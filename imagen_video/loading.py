"""The public loaders: from files to a cascade that samples."""

import importlib.resources
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_video import config as config_files
from imagen_video import records
from imagen_video.cascade.cascade import Cascade, check_chain
from imagen_video.cascade.stage import STAGE_NAMES, Stage
from imagen_video.cascade.weights import StageModel, load_stage, make_stage_model
from imagen_video.text.text_model import TextPaths, load_text_model
from imagen_video.training.checkpoints import restore_params

Weights = str | os.PathLike | Mapping[str, str | os.PathLike]


def load_cascade(
    config: Any = None,
    *,
    weights: Weights | None = None,
    text: TextPaths | None = None,
    stages: tuple[str, ...] | None = None,
) -> Cascade:
    """Loads a cascade: the one embedded in this package, or one from a config and weights.

    Args:
      config: "PATH.py[:SIZE]" with the stages, or what `config.load_config` made of one; None takes
        each stage from its weights file.
      weights: a folder with STAGE.safetensors files or STAGE folders, or a path for each stage; a
        path may be a .safetensors file or the work directory of a training run. None takes the
        embedded weights.
      text: where tokenizer and encoder lie; by default where the config says, else embedded.
      stages: the first stages only, so that the others need no weights; all by default.

    Raises:
      ValueError: naming the file, field or tensor that is missing or does not fit.
    """
    records_by_name: dict[str, Stage] = {}
    if config is not None:
        loaded = config_files.load_config(config) if isinstance(config, str) else config
        records_by_name = {
            name: config_files.to_record(Stage, value, where=f"stages.{name}")
            for name, value in loaded.stages.items()
        }
        check_chain([records_by_name[name] for name in STAGE_NAMES if name in records_by_name])
        text = text or config_files.to_record(TextPaths, loaded.text, where="text")
        if weights is None:
            raise ValueError("weights: a config has none of its own, give some")
    models = tuple(
        load_stage_weights(path, stage=records_by_name.get(name), name=name)
        for name, path in _paths(weights).items()
        if stages is None or name in stages
    )
    if not models:
        raise ValueError(f"weights: {weights or 'this package'} holds no stage")
    text_model = load_text_model(text or TextPaths(), num_tokens=models[0].stage.text_tokens)
    return Cascade(models=models, text=text_model)


def load_stage_weights(
    path: str | os.PathLike, *, stage: Stage | None = None, name: str | None = None
) -> StageModel:
    """Loads one stage from a .safetensors file or a training run's work directory (EMA weights).

    Args:
      path: the file or directory, local or gs://.
      stage: what the parameters must fit, and how they are sampled; None takes what is stored.
      name: the stage that is expected.

    Raises:
      ValueError: naming the path, and what is missing or does not fit.
    """
    if str(path).endswith(".safetensors"):
        model = load_stage(str(path))
        if stage is not None:
            model = make_stage_model(stage, model.params, text_digest=model.text_digest)
    else:
        params, run_config = restore_params(str(epath.Path(path) / "checkpoints"))
        stored = records.from_dict(Stage, run_config["run"]["stage"], where=f"{path}: stage")
        model = make_stage_model(
            stage or stored,
            _to_numpy(params),
            text_digest=run_config["text_digest"],
        )
    if name is not None and model.stage.name != name:
        raise ValueError(f"{path}: holds {model.stage.name}, not {name}")
    return model


def _to_numpy(params: Any) -> Any:
    if isinstance(params, Mapping):
        return {name: _to_numpy(value) for name, value in params.items()}
    return np.asarray(params)


def _paths(weights: Weights | None) -> dict[str, str]:
    """Path of each stage's weights, in the order of the stages."""
    if isinstance(weights, Mapping):
        unknown = set(weights) - set(STAGE_NAMES)
        if unknown:
            raise ValueError(f"weights: no stage {sorted(unknown)[0]!r}")
        return {name: str(weights[name]) for name in STAGE_NAMES if name in weights}
    if weights is None:
        root = epath.Path(importlib.resources.files("imagen_video") / "assets" / "tiny")
    else:
        root = epath.Path(weights)
        if not root.is_dir():
            raise ValueError(f"weights: {root} is not a folder")
    found = {}
    for name in STAGE_NAMES:
        for path in (root / f"{name}.safetensors", root / name):
            if path.exists():
                found[name] = str(path)
                break
    return found
