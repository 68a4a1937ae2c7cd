"""Cached embeddings are the encoder's, of real tokens, in bfloat16, whoever wrote which file."""

import dataclasses
import logging
import shutil

import ml_dtypes
import numpy as np
import pytest
from micro_cascade import text_model

from imagen_video.cascade.embedding import embed_captions
from imagen_video.data.captioned_shapes.prompts import held_out_prompts
from imagen_video.data.embedding_cache import open_cache
from imagen_video.text.frozen_t5 import make_frozen_t5

TEXT = dataclasses.replace(text_model(), num_tokens=40)
LONG = "a large red circle " * 12
CAPTIONS = [*held_out_prompts(9, seed=4), "", "a red circle", "赤い円", LONG]
SIZES = {"batch_size": 4, "shard_captions": 5}


def files(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / "whole"
    report = embed_captions(CAPTIONS, TEXT, root, **SIZES)
    return root, report


def test_embeddings_are_the_encoders_rounded_once(whole):
    root, _ = whole
    found = open_cache(str(root))(CAPTIONS)
    text_emb, mask = TEXT.embed(CAPTIONS)
    np.testing.assert_array_equal(found["tokens"], TEXT.tokenize(CAPTIONS))
    ours, truth = found["text_emb"].astype(np.float32), np.asarray(text_emb)
    assert not ours[~mask].any()
    # Half a unit of bfloat16's last place, and float32's noise between two paddings.
    np.testing.assert_allclose(ours[mask], truth[mask], rtol=2.0**-8 + 1e-5, atol=1e-5)
    same = ours[mask] == truth.astype(ml_dtypes.bfloat16).astype(np.float32)[mask]
    assert same.mean() > 0.999
    # The control: embeddings of other captions are far away.
    assert np.abs(ours[0, :5] - truth[1, :5]).max() > 0.1


def test_the_report_counts_real_tokens_and_lost_ones(whole):
    _, report = whole
    lengths = [len(TEXT.tokenizer.encode(caption)) + 1 for caption in CAPTIONS]
    assert report.captions == len(CAPTIONS) and report.kept == 0
    assert report.tokens == sum(min(length, 40) for length in lengths)
    assert (report.truncated, report.tokens_lost) == (1, lengths[-1] - 40)


def test_truncated_captions_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        report = embed_captions([LONG, "a star"], TEXT, tmp_path / "cache", **SIZES)
    assert f"1 of 2 captions truncated to 40 tokens, {report.tokens_lost} tokens lost" in (
        caplog.text
    )


def test_repeated_captions_are_embedded_once_in_any_order(whole, tmp_path):
    report = embed_captions(CAPTIONS[::-1] + CAPTIONS, TEXT, tmp_path / "cache", **SIZES)
    assert report.captions == len(CAPTIONS)
    assert files(tmp_path / "cache") == files(whole[0])


def test_two_processes_leave_the_files_of_one(whole, tmp_path):
    reports = [
        embed_captions(
            CAPTIONS, TEXT, tmp_path / "cache", **SIZES, process_index=i, process_count=2
        )
        for i in range(2)
    ]
    assert [report.captions for report in reports] == [8, 5]
    assert files(tmp_path / "cache") == files(whole[0])


def test_what_is_missing_is_made_and_what_is_there_is_kept(whole, tmp_path):
    root, calls = tmp_path / "cache", []

    class Stop(Exception):  # noqa: N818
        pass

    def stop(*, done, total, tokens):
        calls.append((done, total))
        if done > 5:
            raise Stop

    with pytest.raises(Stop):
        embed_captions(CAPTIONS, TEXT, root, **SIZES, progress=stop)
    made = files(root)
    assert sum(name.endswith("array_record") for name in made) == 1
    report = embed_captions(CAPTIONS, TEXT, root, **SIZES)
    assert (report.captions, report.kept) == (len(CAPTIONS) - 5, 5)
    assert files(root) == files(whole[0])
    again = embed_captions(CAPTIONS, TEXT, root, **SIZES)
    assert (again.captions, again.kept, again.tokens) == (0, len(CAPTIONS), 0)


def test_what_is_damaged_is_made_again(whole, tmp_path):
    root = tmp_path / "cache"
    shutil.copytree(whole[0], root)
    first, second, _ = sorted(root.glob("*.array_record"))
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(b"a red circle")
    (root / "keys.npy").unlink()
    report = embed_captions(CAPTIONS, TEXT, root, **SIZES)
    assert (report.captions, report.kept) == (10, len(CAPTIONS) - 10)
    assert files(root) == files(whole[0])


def test_another_run_in_the_folder_is_told_to_wait(whole, tmp_path):
    root, caught = tmp_path / "cache", []

    def second(*, done, total, tokens):
        with pytest.raises(ValueError, match="cache: another run is at work there") as raised:
            embed_captions(CAPTIONS, TEXT, root, **SIZES)
        caught.append(raised)

    embed_captions(CAPTIONS, TEXT, root, **SIZES, progress=second)
    assert caught and files(root) == files(whole[0])


def test_another_encoder_or_other_captions_do_not_go_into_the_same_folder(whole):
    root, before = whole[0], files(whole[0])
    params = {**TEXT.encoder.params, "token_embedder": {"embedding": np.zeros((480, 128))}}
    encoder = make_frozen_t5(TEXT.encoder.config, params)
    other = dataclasses.replace(
        TEXT, encoder=encoder, paths=dataclasses.replace(TEXT.paths, encoder="other/encoder")
    )
    with pytest.raises(ValueError, match=f"{TEXT.digest[:12]}.*{other.digest[:12]}.*other/enc"):
        embed_captions(CAPTIONS, other, root, **SIZES)
    with pytest.raises(ValueError, match="captions 13, not 12"):
        embed_captions(CAPTIONS[1:], TEXT, root, **SIZES)
    assert files(root) == before


def test_no_captions_make_no_folder(tmp_path):
    with pytest.raises(ValueError, match="captions: there are none"):
        embed_captions([], TEXT, tmp_path / "cache")
    with pytest.raises(ValueError, match="batch_size: 0"):
        embed_captions(["a"], TEXT, tmp_path / "cache", batch_size=0)
    assert not (tmp_path / "cache").exists()


def test_a_batch_larger_than_the_captions_is_no_larger_than_them(tmp_path):
    embed_captions(CAPTIONS[:3], TEXT, tmp_path / "large", batch_size=10**12)
    embed_captions(CAPTIONS[:3], TEXT, tmp_path / "fitting", batch_size=3)
    assert files(tmp_path / "large") == files(tmp_path / "fitting")
