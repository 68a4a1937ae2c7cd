"""Captions to token ids with a sentencepiece model, by T5's conventions (arXiv 1910.10683)."""

import dataclasses
import functools
import hashlib
import io
import logging
from collections.abc import Sequence

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Int32

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A sentencepiece model as a value: `tokenizer(captions, num_tokens)` gives int32 ids [b n].

    `</s>` (id 1) ends every caption, also a truncated one; padding is id 0. Any Unicode string is
    accepted: what the vocabulary lacks becomes bytes where the model has byte pieces, else the
    unknown id 2.

    Attributes:
      model: the serialised sentencepiece model.

    Raises:
      ValueError: at construction, where `model` is no sentencepiece model, or its `</s>` is not 1.
    """

    model: bytes = dataclasses.field(repr=False)

    def __post_init__(self):
        if not self.model:  # sentencepiece takes it for a model without pieces.
            raise ValueError("model: empty, not a sentencepiece model")
        eos_id = self._processor.eos_id()
        if eos_id == -1:
            raise ValueError("model: has no </s>, which ends every caption of T5")
        if eos_id != EOS_ID:
            raise ValueError(f"model: its </s> has id {eos_id}, must be {EOS_ID} as in T5")

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except (RuntimeError, TypeError) as error:
            raise ValueError("model: not a sentencepiece model") from error

    @property
    def vocab_size(self) -> int:
        """Pieces of the model; an encoder's table may have more rows (sentinels, padding)."""
        return self._processor.get_piece_size()

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the model's bytes, in hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    def __call__(self, captions: Sequence[str], num_tokens: int) -> Int32[np.ndarray, "b n"]:
        """Returns ids padded with 0, or truncated with a logged warning, to `num_tokens`.

        Raises:
          ValueError: num_tokens leaves no room for `</s>`.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens: {num_tokens}, must be at least 1")
        tokens = np.full((len(captions), num_tokens), PAD_ID, np.int32)
        lost = []
        for row, caption in zip(tokens, captions, strict=True):
            ids, too_long_by = self.ids(caption, num_tokens)
            row[: len(ids)] = ids
            lost += [too_long_by] if too_long_by else []
        warn_of_truncation(lost, of=len(captions), num_tokens=num_tokens)
        return tokens

    def ids(self, caption: str, num_tokens: int) -> tuple[list[int], int]:
        """Returns at most `num_tokens` ids, the last of them `</s>`, and how many were cut off."""
        ids = self.encode(caption)
        lost = max(0, len(ids) + 1 - num_tokens)
        return [*ids[: num_tokens - 1], EOS_ID], lost

    def encode(self, caption: str) -> list[int]:
        """Returns the caption's ids, without `</s>`, padding or truncation."""
        # Half a surrogate pair is a legal str but has no UTF-8 form: it becomes a question mark.
        return self._processor.encode(caption.encode("utf-8", "replace").decode("utf-8"))

    def decode(self, tokens: Sequence[int] | Int32[np.ndarray, " n"]) -> str:
        """Returns the normalised text of ids, which end at the first `</s>` or padding."""
        ids = [int(token) for token in tokens]
        ends = [i for i, token in enumerate(ids) if token in (PAD_ID, EOS_ID)]
        return self._processor.decode(ids[: ends[0]] if ends else ids)


def warn_of_truncation(lost: Sequence[int], *, of: int, num_tokens: int) -> None:
    """Logs how many tokens were cut off from each caption that was too long, if any was.

    Args:
      lost: tokens lost, of the captions that were too long.
      of: how many captions there were.
      num_tokens: what they were cut to.
    """
    if lost:
        _log.warning(
            "%d of %d captions truncated to %d tokens, %d tokens lost (at most %d from one)",
            len(lost), of, num_tokens, sum(lost), max(lost),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionTokens:
    """What a batch holds of its captions: `tokens`. Light enough to go to reading processes.

    Attributes:
      tokenizer: captions to ids.
      num_tokens: padded or truncated to.
    """

    tokenizer: Tokenizer
    num_tokens: int

    def __call__(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns int32 `tokens` [m n]."""
        return {"tokens": self.tokenizer(captions, self.num_tokens)}


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Reads a sentencepiece `.model` file, local or gs://.

    Raises:
      ValueError: naming the path, where there is no such file or it holds something else.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such tokenizer file")
    try:
        return Tokenizer(model=file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def train_tokenizer(captions: Sequence[str], vocab_size: int) -> bytes:
    """Trains a small sentencepiece model on captions and returns it serialised.

    Byte-pair merges with byte fallback, so that any text has ids; ids 0, 1, 2 are padding, `</s>`
    and unknown, there is no beginning token. Text is NFKC-normalised and case-folded. Both are our
    choice: a small encoder cannot learn each word twice, and on captions of a small grammar the
    unigram trainer of T5's own vocabulary cuts the commonest words, where merges keep them whole.
    The same captions give the same bytes.

    Args:
      captions: training text.
      vocab_size: upper limit of pieces, the 256 bytes included; fewer where captions hold fewer.

    Raises:
      ValueError: vocab_size has no room for the bytes, the special pieces and the characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"vocab_size: {vocab_size}, {str(error).splitlines()[0]}") from error
    return model.getvalue()
