"""From a training run's newest checkpoint to the files that sampling loads."""

import dataclasses
from typing import Any

from etils import epath

from imagen_video import records
from imagen_video.cascade.stage import Stage
from imagen_video.cascade.weights import save_stage
from imagen_video.diffusion.guidance import GuidanceRange
from imagen_video.files import atomic_path
from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.masking import encoder_params
from imagen_video.text.t5_weights import save_t5
from imagen_video.text.tokenizer import load_tokenizer
from imagen_video.training.checkpoints import restore_params
from imagen_video.training.ladder_files import LADDER_FILE, last_rung
from imagen_video.training.text_run import TOKENIZER_FILE, TextRun, encoder_config

# Runs whose parameters are a stage's; both kinds hold it under the same name.
STAGE_KINDS = ("StageRun", "Rung")


def restore_stage(workdir: str, *, like: Any = None) -> tuple[Stage, Any, str]:
    """Reads a stage's newest checkpoint: the stage, its EMA weights, its text model's digest.

    Args:
      workdir: of a stage's training, of one rung of a distillation, or of a whole ladder, whose
        last student is read.
      like: as in `restore_params`.

    Raises:
      ValueError: there is no checkpoint, it is not of a stage, or the ladder is not finished.
    """
    params, config = restore_params(_checkpoints(workdir), like=like)
    if _kind(config) not in STAGE_KINDS:
        raise ValueError(f"{workdir}: its checkpoint is not of a stage")
    return _stage(config, workdir), params, config["text_digest"]


def export_run(
    workdir: str, out: epath.PathLike, *, dtype: str, sampled_as: Stage | None = None
) -> list[epath.Path]:
    """Writes the EMA weights of a run, of whatever kind, and returns the files written.

    Args:
      workdir: of `train_stage`, `distill` or `train_text`.
      out: the folder for them, local or gs://, made where there is none.
      dtype: of the stored tensors.
      sampled_as: a record of this stage whose sampling the file shall have; None leaves that of
        the training run's config. Of a student's, its augmentation is taken and, if it reads one,
        its guidance weight: all else it was distilled for.

    Raises:
      ValueError: there is no checkpoint, or it is of no run of this library, or of another stage.
    """
    params, config = restore_params(_checkpoints(workdir))
    out = epath.Path(out)
    if _kind(config) in STAGE_KINDS:
        stage = _stage(config, workdir)
        if sampled_as is not None:
            if sampled_as.name != stage.name:
                raise ValueError(f"{workdir}: a run of {stage.name}, not of {sampled_as.name}")
            stage = _sampled_as(stage, sampled_as)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{stage.name}.safetensors"
        save_stage(str(path), stage, params, text_digest=config["text_digest"], dtype=dtype)
        return [path]
    if _kind(config) == "TextRun" and sampled_as is None:
        tokenizer = load_tokenizer(epath.Path(workdir) / TOKENIZER_FILE)
        text_run = records.from_dict(TextRun, config["run"], where="run")
        encoder = make_frozen_t5(encoder_config(text_run, tokenizer), encoder_params(params))
        out.mkdir(parents=True, exist_ok=True)
        path = out / "text_encoder.safetensors"
        save_t5(str(path), encoder, dtype=dtype)
        with atomic_path(out / TOKENIZER_FILE) as part:
            part.write_bytes(tokenizer.model)
        return [path, out / TOKENIZER_FILE]
    wanted = "training run of this library" if sampled_as is None else "stage"
    raise ValueError(f"{workdir}: its checkpoint is of no {wanted}")


def _sampled_as(stage: Stage, wanted: Stage) -> Stage:
    if stage.distilled_guidance is None:
        return dataclasses.replace(stage, sampling=wanted.sampling, oscillating=wanted.oscillating)
    fields = {"augmentation": wanted.sampling.augmentation}
    if isinstance(stage.distilled_guidance, GuidanceRange):
        fields["guidance"] = wanted.sampling.guidance
    sampling = dataclasses.replace(stage.sampling, **fields)
    return dataclasses.replace(stage, sampling=sampling)


def _checkpoints(workdir: str) -> str:
    root = epath.Path(workdir)
    if (root / LADDER_FILE).exists():
        root = last_rung(root)
    return str(root / "checkpoints")


def _kind(config: Any) -> str | None:
    """Which kind of run a checkpoint's config describes; None for one of a foreign program."""
    run = config.get("run") if isinstance(config, dict) else None
    return run.get(records.KIND) if isinstance(run, dict) else None


def _stage(config: Any, workdir: str) -> Stage:
    return records.from_dict(Stage, config["run"]["stage"], where=f"{workdir}: stage")
