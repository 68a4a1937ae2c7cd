"""What a training run reads captions with: a text model in every step, or embeddings of a cache."""

import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from imagen_video.cascade.weights import load_stage
from imagen_video.data.embedding_cache import EmbeddingCache, open_cache
from imagen_video.data.transforms import CaptionFn
from imagen_video.sharding.layout import Layout
from imagen_video.text.frozen_t5 import encode
from imagen_video.text.text_model import TextModel, TextPaths, load_text_model
from imagen_video.training.checkpoints import restore_config
from imagen_video.training.objectives import Encode

RunText = TextModel | EmbeddingCache


def load_run_text(paths: TextPaths, *, num_tokens: int, layout: Layout | None = None) -> RunText:
    """Loads what `paths` asks for: the text model, or the cache of its embeddings.

    A cache must be of the very text model that the paths name. To know, its encoder is read for its
    digest, except where it lies in a bucket, under the same address as when the cache was made: to
    read a large one from there at every start of every machine would take minutes.

    Raises:
      ValueError: naming the file that is missing or wrong, or both text models.
    """
    if paths.cache is None:
        return load_text_model(paths, num_tokens=num_tokens, layout=layout)
    cache = open_cache(paths.cache)
    if "://" in paths.encoder and (paths.encoder, paths.tokenizer) == (
        cache.header.encoder,
        cache.header.tokenizer,
    ):
        _check_length(cache, num_tokens)
        return cache
    return cache_of(load_text_model(paths, num_tokens=num_tokens, values=False))


def cache_of(text: TextModel) -> EmbeddingCache:
    """Opens the cache that `text.paths` names.

    Raises:
      ValueError: it is of another text model, naming both, or of another caption length.
    """
    cache = open_cache(text.paths.cache)
    if cache.digest != text.digest:
        raise ValueError(
            f"text.cache: {cache.root} holds embeddings of text model {cache.name}, but the run"
            f" reads {text.name}"
        )
    _check_length(cache, text.num_tokens)
    return cache


def _check_length(cache: EmbeddingCache, num_tokens: int) -> None:
    if cache.header.num_tokens != num_tokens:
        raise ValueError(
            f"text.cache: {cache.root} holds captions of up to {cache.header.num_tokens} tokens,"
            f" stage.text_tokens is {num_tokens}"
        )


def caption_fn(text: RunText) -> CaptionFn:
    """Returns what makes a batch's arrays of its captions; fit to go to reading processes."""
    return text if isinstance(text, EmbeddingCache) else text.caption_tokens


def frozen_params(text: RunText, layout: Layout | None = None) -> tuple[Any, ...]:
    """Returns what a training step reads of `text` besides a batch.

    It is the encoder's parameters, spread over the devices; nothing with cached embeddings.
    """
    if isinstance(text, EmbeddingCache):
        return ()
    if layout is None:
        return (jax.tree.map(jnp.asarray, text.encoder.params),)
    return (text.encoder.placed(layout).params,)


def encode_fn(text: RunText, params: Any = None) -> Encode | None:
    """Returns what encodes tokens in a training step; None where batches hold the embeddings.

    Args:
      text: of the run.
      params: the encoder's, traced, of `frozen_params`. As constants they would be copied into the
        program, whole for each device.
    """
    if isinstance(text, EmbeddingCache):
        return None
    return lambda tokens: encode(text.encoder.config, params, tokens)


def check_same_text(source: str, text: RunText) -> None:
    """Refuses to go on from what was trained with another text model.

    Args:
      source: work directory of a run, which may not have begun, or an exported .safetensors file.
      text: of the run that goes on.

    Raises:
      ValueError: naming both; or the work directory's config.json, which is damaged.
    """
    if source.endswith(".safetensors"):
        digest, made_of = load_stage(source).text_digest, ""
    else:
        before = config_before(epath.Path(source))
        if before is None:
            return
        digest = before.get("text_digest", text.digest)
        paths = before.get("ladder", before["run"])["text"]
        made_of = f" (encoder {paths['encoder']}, tokenizer {paths['tokenizer']})"
    if digest != text.digest:
        raise ValueError(
            f"{source}: was trained with text model {digest[:12]}{made_of}, but the run reads"
            f" {text.name}"
        )


def config_before(root: epath.Path) -> dict[str, Any] | None:
    """Returns the config of a stage's run, or a rung's, that a work directory was begun with.

    None where the run has no checkpoint yet, so that it may be begun with another.

    Raises:
      ValueError: naming config.json, which is damaged or of another kind of run.
    """
    file, checkpoints = root / "config.json", root / "checkpoints"
    if not any(path.name.isdecimal() for path in checkpoints.glob("*")):  # others are unfinished
        return None
    if file.exists():
        try:
            config = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{file}: damaged, it is not JSON ({error}); delete it and the run goes by its"
                " newest checkpoint's own"
            ) from error
    else:
        config = restore_config(str(checkpoints))
    try:
        paths = config.get("ladder", config["run"])["text"]
        known = (config.get("text_digest", ""), paths["encoder"], paths["tokenizer"])
    except (LookupError, TypeError, AttributeError):
        known = (None,)
    if not all(isinstance(value, str) for value in known):
        raise ValueError(f"{file}: does not say which text model a stage was trained with")
    return config
