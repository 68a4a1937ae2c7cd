"""An encoder that no device holds whole gives the embeddings of one that does."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from imagen_video.data.embedding_cache import open_cache
from imagen_video.text.text_model import TextPaths, load_text_model

PROGRAM = pathlib.Path(__file__).parents[1] / "sharded_text.py"


def test_eight_devices_embed_what_one_does(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "cache")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found["difference"] < 1e-5 < 1e-2 < found["scale"], found
        assert found["devices"] == 8 and found["placed"] and found["same_digest"], found
        assert found["share"] < 0.14, found
    cache = open_cache(str(tmp_path / "cache"))
    text = load_text_model(TextPaths(), num_tokens=16)
    caption = "a red letter C moving left"
    text_emb, mask = text.embed([caption])
    ours = cache([caption])["text_emb"].astype(np.float32)
    truth = np.where(mask[..., None], np.asarray(text_emb), 0)
    np.testing.assert_allclose(ours, truth, rtol=2.0**-8 + 1e-4, atol=1e-4)


def test_an_encoder_held_in_bfloat16_keeps_its_name_and_nearly_its_embeddings():
    full = load_text_model(TextPaths(), num_tokens=16)
    half = load_text_model(TextPaths(dtype="bfloat16"), num_tokens=16)
    assert half.digest == full.digest
    found, mask = half.embed(["a red circle", "a large blue star on a black background"])
    truth, _ = full.embed(["a red circle", "a large blue star on a black background"])
    found, truth = np.asarray(found)[mask], np.asarray(truth)[mask]
    error = np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    assert 1e-4 < error.max() < 2e-2


def test_a_model_without_values_has_its_name_alone():
    full = load_text_model(TextPaths(), num_tokens=16)
    named = load_text_model(TextPaths(), num_tokens=16, values=False)
    assert (named.digest, named.width, named.name) == (full.digest, full.width, full.name)
