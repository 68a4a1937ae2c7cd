"""One training run of the demo's text encoder: tokenizer, captions, masked-token objective."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from imagen_video import records
from imagen_video.array_types import KeyArray
from imagen_video.data.sources import CaptionedShapes
from imagen_video.text.masking import (
    TokenCorruption,
    init_masked_params,
    masked_token_objective,
)
from imagen_video.text.t5_encoder import T5Config
from imagen_video.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from imagen_video.training.loop import TrainConfig, train
from imagen_video.training.state import TrainState

TOKENIZER_FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """Sizes of the encoder but for its vocabulary, which is the tokenizer's."""

    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """`TokenCorruption` but for the vocabulary size."""

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionData:
    """Captions to train on.

    Attributes:
      source: whose captions.
      vocab_size: upper limit of the tokenizer's pieces.
      tokenizer_captions: how many captions the tokenizer learns from.
      image_share: share of still images' captions.
    """

    source: CaptionedShapes
    vocab_size: int
    tokenizer_captions: int
    image_share: float

    def caption(self, index: int) -> str:
        """Returns training caption `index`, of a clip or of a still image."""
        is_image = np.random.default_rng([self.source.seed, index]).random() < self.image_share
        return self.source.caption(index, split="train", is_image=bool(is_image))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRun:
    """A whole run, as `configs/text_encoder.py` describes it."""

    encoder: EncoderSizes
    text_tokens: int
    data: CaptionData
    corruption: Corruption
    train: TrainConfig


class CaptionBatches:
    """Batch k holds captions kB .. (k+1)B - 1 of the data; an iterator that can set its place."""

    def __init__(self, run: TextRun, tokenizer: Tokenizer):
        self._run, self._tokenizer, self._k = run, tokenizer, 0

    def __next__(self) -> dict[str, np.ndarray]:
        B = self._run.train.batch_size
        positions = range(self._k * B, (self._k + 1) * B)
        self._k += 1
        captions = [self._run.data.caption(position) for position in positions]
        return {"tokens": self._tokenizer(captions, self._run.text_tokens)}

    def get_state(self) -> dict[str, int]:
        """Returns the number of the next batch, and what it depends on."""
        return {"next_batch": self._k, **self._identity()}

    def _identity(self) -> dict[str, int]:
        return {"batch_size": self._run.train.batch_size, "seed": self._run.data.source.seed}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from a state that `get_state` returned.

        Raises:
          ValueError: it is of another batch size or seed.
        """
        for name, value in self._identity().items():
            if state.get(name, value) != value:  # older checkpoints do not say it
                raise ValueError(
                    f"data {name} is {value}, but the checkpoint's run had {state[name]}"
                )
        self._k = int(state["next_batch"])


def train_text(run: TextRun, *, workdir: str) -> TrainState:
    """Trains tokenizer and encoder in `workdir`; goes on where an earlier run stopped.

    Raises:
      ValueError: `workdir` holds a run of another kind, or one with other captions, whose tokenizer
        this one would take.
    """
    _check_begun(run, epath.Path(workdir) / "config.json")
    tokenizer = _tokenizer(run.data, epath.Path(workdir) / TOKENIZER_FILE)
    config = encoder_config(run, tokenizer)
    corruption = TokenCorruption(
        vocab_size=tokenizer.vocab_size, **dataclasses.asdict(run.corruption)
    )

    def loss_fn(params: Any, batch: dict[str, Any], key: KeyArray):
        return masked_token_objective(config, corruption, params, batch["tokens"], key), {}

    return train(
        init_fn=lambda key: init_masked_params(config, key),
        loss_fn=loss_fn,
        batches=CaptionBatches(run, tokenizer),
        config=run.train,
        workdir=workdir,
        run_config={"run": records.to_dict(run)},
    )


def encoder_config(run: TextRun, tokenizer: Tokenizer) -> T5Config:
    """Returns the encoder's sizes, its vocabulary the tokenizer's."""
    return T5Config(vocab_size=tokenizer.vocab_size, **dataclasses.asdict(run.encoder))


def _check_begun(run: TextRun, file: epath.Path) -> None:
    """Raises ValueError where config.json is of another kind of run, or of other captions."""
    if not file.exists():
        return
    try:
        begun = records.from_dict(TextRun, json.loads(file.read_text())["run"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: is of no training of a text encoder: {error}") from error
    for field in dataclasses.fields(CaptionData):
        theirs, ours = getattr(begun.data, field.name), getattr(run.data, field.name)
        if theirs != ours:
            raise ValueError(
                f"{file}: was begun with data.{field.name} {theirs}, now it is {ours}; use another"
                " work directory"
            )


def _tokenizer(data: CaptionData, path: epath.Path) -> Tokenizer:
    """The run's tokenizer, trained once and kept beside its checkpoints."""
    if path.exists():
        return load_tokenizer(path)
    captions = [data.caption(i) for i in range(data.tokenizer_captions)]
    tokenizer = Tokenizer(model=train_tokenizer(captions, data.vocab_size))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(tokenizer.model)
    temporary.replace(path)
    return tokenizer
