"""The public loaders: from files to a cascade that samples."""

import dataclasses
import functools
import importlib.resources
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_video import config as config_files
from imagen_video.cascade.cascade import Cascade, check_chain
from imagen_video.cascade.same_network import check_same_network
from imagen_video.cascade.stage import STAGE_NAMES, Stage
from imagen_video.cascade.stage_choice import chosen_stages, oscillating_stages
from imagen_video.cascade.weights import StageModel, load_stage, make_stage_model
from imagen_video.files import any_path
from imagen_video.sharding.layout import Layout, ShardingConfig, layout_if_needed, local_layout
from imagen_video.sharding.mesh import MeshShape
from imagen_video.text.text_model import TextModel, TextPaths, load_text_model
from imagen_video.training.export import restore_stage

DISTILLED = "distilled"
OSCILLATING = "oscillating"  # in the folder of students, those of oscillating guidance
Weights = str | os.PathLike | Mapping[str, str | os.PathLike]


def load_cascade(
    config: Any = None,
    *,
    weights: Weights | None = None,
    text: TextPaths | None = None,
    through: str | None = None,
    sharding: ShardingConfig | Mapping[str, ShardingConfig] | None = None,
    distilled: bool | str = False,
    guidance: str = "constant",
) -> Cascade:
    """Loads a cascade: the one embedded in this package, or one from a config and weights.

    Args:
      config: "PATH.py[:SIZE]" with the stages, or what `config.load_config` made of one; None takes
        each stage from its weights file.
      weights: a folder with STAGE.safetensors files or STAGE folders, local or gs://, or a path for
        each stage; a path may be a .safetensors file or the work directory of a training run. None
        takes the embedded weights.
      text: where tokenizer and encoder lie; by default where the config says, else embedded.
      through: the last stage that will be sampled, so that later ones need no weights; None
        wants all stages of the config, or takes all that have weights.
      sharding: how stages are spread over the devices of all processes, alike or by name; by
        default each clip is cut over all devices, by frames.
      distilled: which stages' students are taken, from the folder `distilled` of the weights, each
        sampled in the steps that it was distilled for, one evaluation a step: True or "all", "sr"
        (all but the base), False or "none", or names with commas. Of a config, a student takes
        nothing.
      guidance: as in `SamplingOptions`; students of stages that oscillate are those in the folder
        `distilled/oscillating`.

    Raises:
      ValueError: naming the file, field or tensor that is missing or does not fit.
    """
    records_by_name: dict[str, Stage] = {}
    if config is not None:
        if weights is None:
            raise ValueError("weights: a config has none of its own, give some")
        loaded = config_files.load_config(config) if isinstance(config, str) else config
        for field in ("stages", "text"):
            if field not in loaded:
                raise ValueError(f"config: has no {field}, so it is not a cascade's")
        records_by_name = {
            name: config_files.to_record(Stage, value, where=f"stages.{name}")
            for name, value in loaded.stages.items()
        }
        check_chain([records_by_name[name] for name in STAGE_NAMES if name in records_by_name])
        text = text or config_files.to_record(TextPaths, loaded.text, where="text")

    @functools.cache
    def stage_model(path: str, name: str, is_student: bool) -> StageModel:
        record = None if is_student else records_by_name.get(name)
        model = load_stage_weights(path, stage=record, name=name)
        if is_student and model.stage.distilled_steps is None:
            raise ValueError(f"{path}: holds no distilled weights")
        return dataclasses.replace(model, layout=_layout(sharding, name))

    @functools.cache
    def text_model(num_tokens: int) -> TextModel:
        return load_text_model(text or TextPaths(), num_tokens=num_tokens, layout=local_layout())

    @functools.cache
    def cascade(students: frozenset[str], oscillating: frozenset[str]) -> Cascade:
        """Shares with all others of these files what they have in common."""
        paths = _paths(weights, students, oscillating)
        wanted = _through(tuple(records_by_name or paths), through)
        _check_found(wanted, paths, weights, students, oscillating)
        models = tuple(stage_model(paths[name], name, name in students) for name in wanted)
        return Cascade(
            models=models,
            text=text_model(models[0].stage.text_tokens),
            load_students=with_students,
        )

    def with_students(distilled: bool | str, guidance: str) -> Cascade:
        students = _students(distilled)
        return cascade(students, oscillating_stages(guidance) & students)

    return with_students(distilled, guidance)


def _students(distilled: bool | str) -> frozenset[str]:
    """The stages whose students are taken."""
    if isinstance(distilled, bool):
        distilled = "all" if distilled else "none"
    return chosen_stages(distilled, field="distilled")


def _layout(
    sharding: ShardingConfig | Mapping[str, ShardingConfig] | None, name: str
) -> Layout | None:
    """The layout of a stage on all devices, if it needs one."""
    by_frames = ShardingConfig(mesh=MeshShape(fsdp=1, context=-1))
    if isinstance(sharding, Mapping):
        sharding = sharding.get(name)
    return layout_if_needed(sharding or by_frames)


def load_stage_weights(
    path: str | os.PathLike, *, stage: Stage | None = None, name: str | None = None
) -> StageModel:
    """Loads one stage from a .safetensors file or a training run's work directory (EMA weights).

    Args:
      path: of the file or the directory, local or gs://.
      stage: what the parameters must fit, and how they are sampled; None takes what is stored.
      name: the stage that is expected.

    Raises:
      ValueError: naming the path, and what is missing or does not fit.
    """
    if str(path).endswith(".safetensors"):
        model = load_stage(str(path), param_dtype=stage and stage.sample_param_dtype)
        stored, params, text_digest = model.stage, model.params, model.text_digest
    else:
        stored, params, text_digest = restore_stage(str(path))
    if name is not None and stored.name != name:
        raise ValueError(f"{path}: holds {stored.name}, not {name}")
    if stage is not None and stage.distilled_steps != stored.distilled_steps:
        raise ValueError(
            f"{path}: distilled for {stored.distilled_steps} steps, which the config's"
            f" {stage.name} is not; sample it without a config"
        )
    if stage is not None and stage.distilled_guidance != stored.distilled_guidance:
        raise ValueError(
            f"{path}: guidance is folded into these weights of {stored.name}, which the config"
            " does not say; sample them without a config"
        )
    if stage is not None:
        check_same_network(str(path), stored, stage)
    try:
        return make_stage_model(stage or stored, params, text_digest=text_digest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _through(names: tuple[str, ...], last: str | None) -> tuple[str, ...]:
    """The names up to `last`, in the order of the stages."""
    names = tuple(name for name in STAGE_NAMES if name in names)
    if last is None:
        return names
    if last not in names:
        raise ValueError(f"through: no stage {last!r}; there are {', '.join(names) or 'none'}")
    return names[: names.index(last) + 1]


def _paths(
    weights: Weights | None, students: frozenset[str], oscillating: frozenset[str]
) -> dict[str, str | None]:
    """Path of each stage's weights, in the order of the stages; None for a student not there."""
    if isinstance(weights, Mapping):
        unknown = set(weights) - set(STAGE_NAMES)
        if unknown:
            raise ValueError(f"weights: no stage {sorted(unknown)[0]!r}")
        return {name: str(weights[name]) for name in STAGE_NAMES if name in weights}
    if weights is None:
        root = epath.Path(importlib.resources.files("imagen_video") / "assets" / "tiny")
    else:
        root = any_path(weights)
        if not root.is_dir():
            raise ValueError(f"weights: {root} is not a folder")
    folders = {name: root for name in STAGE_NAMES}
    for name in students:
        if not (root / DISTILLED).is_dir():
            raise ValueError(
                f"distilled: there are no distilled weights, {root / DISTILLED} is not a folder"
            )
        folders[name] = root / _students_folder(name, oscillating)
    found = {}
    for name in STAGE_NAMES:
        path = _path(folders[name], name)
        if path is not None or _path(root, name) is not None:
            found[name] = path
    return found


def _students_folder(name: str, oscillating: frozenset[str]) -> str:
    """Where a stage's student lies, below the originals."""
    return f"{DISTILLED}/{OSCILLATING}" if name in oscillating else DISTILLED


def _check_found(
    wanted: tuple[str, ...],
    paths: Mapping[str, str | None],
    weights: Weights | None,
    students: frozenset[str],
    oscillating: frozenset[str],
) -> None:
    """Raises ValueError where a wanted stage has no weights, or none is wanted."""
    place = "this package" if weights is None else weights
    for name in wanted:
        if paths.get(name) is None:
            if name in students:
                folder = _students_folder(name, oscillating)
                raise ValueError(f"distilled: {place} has no student of {name} in {folder!r}")
            raise ValueError(f"weights: {place} holds none of {name}")
    if not wanted:
        raise ValueError(
            f"weights: {place} holds those of no stage; train some and name their folder"
        )


def _path(folder: epath.Path, name: str) -> str | None:
    """A stage's weights in `folder`: a file, or the work directory of a training run."""
    for path in (folder / f"{name}.safetensors", folder / name):
        if path.exists():
            return str(path)
    return None
