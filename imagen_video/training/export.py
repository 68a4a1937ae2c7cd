"""From a training run's newest checkpoint to the files that sampling loads."""

import pathlib

from etils import epath

from imagen_video import records
from imagen_video.cascade.stage import Stage
from imagen_video.cascade.weights import make_stage_model, save_stage
from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.masking import encoder_params
from imagen_video.text.t5_weights import save_t5
from imagen_video.text.tokenizer import load_tokenizer
from imagen_video.training.checkpoints import restore_params
from imagen_video.training.text_run import TOKENIZER_FILE, TextRun, encoder_config
from imagen_video.video_io import atomic_path


def export_run(workdir: str, out: pathlib.Path, *, dtype: str) -> list[pathlib.Path]:
    """Writes the EMA weights of a run, of whatever kind, and returns the files written.

    Args:
      workdir: of `train_stage` or `train_text`.
      out: an existing folder.
      dtype: of the stored tensors.

    Raises:
      ValueError: there is no checkpoint, or it is of no run of this library.
    """
    params, config = restore_params(str(epath.Path(workdir) / "checkpoints"))
    run = config.get("run", {})
    if run.get(records.KIND) == "StageRun":
        stage = records.from_dict(Stage, run["stage"], where="stage")
        model = make_stage_model(stage, params, text_digest=config["text_digest"])
        path = out / f"{stage.name}.safetensors"
        save_stage(str(path), model, dtype=dtype)
        return [path]
    if run.get(records.KIND) == "TextRun":
        tokenizer = load_tokenizer(epath.Path(workdir) / TOKENIZER_FILE)
        text_run = records.from_dict(TextRun, run, where="run")
        encoder = make_frozen_t5(encoder_config(text_run, tokenizer), encoder_params(params))
        path = out / "text_encoder.safetensors"
        save_t5(str(path), encoder, dtype=dtype)
        with atomic_path(out / TOKENIZER_FILE) as part:
            part.write_bytes(tokenizer.model)
        return [path, out / TOKENIZER_FILE]
    raise ValueError(f"{workdir}: its checkpoint is of no training run of this library")
