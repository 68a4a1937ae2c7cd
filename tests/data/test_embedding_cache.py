"""A cache gives back, for each caption, exactly what was written for it, and nothing for others."""

import json
import multiprocessing
import time

import ml_dtypes
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from permissions import unprivileged
from safetensors.numpy import save

from imagen_video.data import embedding_cache
from imagen_video.data.cache_header import FORMAT_VERSION, CacheHeader
from imagen_video.data.embedding_cache import (
    CaptionEmbedding,
    begin_cache,
    caption_key,
    captions_digest,
    in_order,
    open_cache,
    write_shard,
)

N, D = 6, 4
CAPTIONS = [f"caption {i}" for i in range(11)] + ["", "赤い円", "half a \ud83c pair", " spaces "]


def header_of(ordered, **changes):
    fields = dict(
        format_version=FORMAT_VERSION,
        text_digest="a" * 64,
        encoder="here",
        tokenizer="there",
        dtype="float32",
        num_tokens=N,
        width=D,
        captions=len(ordered),
        captions_digest=captions_digest(ordered),
        shard_captions=4,
    )
    return CacheHeader(**fields | changes)


def entry_of(caption):
    """An embedding that no other caption has, of one to N tokens."""
    rng = np.random.default_rng(caption_key(caption))
    length = int(rng.integers(1, N + 1))
    return CaptionEmbedding(
        caption=caption,
        tokens=rng.integers(1, 1000, length).astype(np.int32),
        text_emb=rng.normal(size=(length, D)).astype(np.float32),
    )


def write(root, captions=CAPTIONS, shards=None):
    ordered = in_order(captions)
    header = header_of(ordered)
    begin_cache(root, header, ordered)
    for i, name in enumerate(header.shards):
        if shards is None or i in shards:
            write_shard(root / name, map(entry_of, ordered[4 * i : 4 * i + 4]))
    return root


def check_batch(cache, captions):
    arrays = cache(captions)
    assert arrays["tokens"].shape == (len(captions), N) and arrays["tokens"].dtype == np.int32
    assert arrays["text_emb"].shape == (len(captions), N, D)
    assert arrays["text_emb"].dtype == ml_dtypes.bfloat16
    for caption, tokens, text_emb in zip(captions, arrays["tokens"], arrays["text_emb"]):
        entry = entry_of(caption)
        n = len(entry.tokens)
        np.testing.assert_array_equal(tokens[:n], entry.tokens)
        np.testing.assert_array_equal(text_emb[:n], entry.text_emb.astype(ml_dtypes.bfloat16))
        assert not tokens[n:].any() and not text_emb[n:].astype(np.float32).any()


def test_every_caption_finds_its_own_embedding(tmp_path):
    cache = open_cache(str(write(tmp_path / "cache")))
    check_batch(cache, CAPTIONS[::-1] + CAPTIONS[:3])
    assert cache.width == D and cache.digest == "a" * 64


def _check_elsewhere(cache):
    check_batch(cache, CAPTIONS)


def test_a_cache_goes_to_another_process_and_opens_its_files_there(tmp_path):
    cache = open_cache(str(write(tmp_path / "cache")))
    cache.read(CAPTIONS[0])
    process = multiprocessing.get_context("spawn").Process(target=_check_elsewhere, args=(cache,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_captions_that_share_a_key_are_told_apart(tmp_path, monkeypatch):
    keys = {caption: i % 3 for i, caption in enumerate(CAPTIONS)}
    monkeypatch.setattr(embedding_cache, "caption_key", lambda caption: keys.get(caption, 1))
    cache = open_cache(str(write(tmp_path / "cache")))
    for caption in CAPTIONS:
        np.testing.assert_array_equal(cache.read(caption).tokens, entry_of(caption).tokens)
    with pytest.raises(ValueError, match="no embedding of the caption 'another'"):
        cache.read("another")


def test_a_caption_that_is_not_there_is_named(tmp_path):
    cache = open_cache(str(write(tmp_path / "cache")))
    for caption in ("a caption", "caption 1 ", "Caption 1"):
        with pytest.raises(ValueError, match=f"no embedding of the caption {caption!r}"):
            cache(["caption 1", caption])


def test_order_and_digest_depend_on_the_set_of_captions_alone():
    ordered = in_order(CAPTIONS)
    assert sorted(ordered) == sorted(CAPTIONS)
    assert in_order(CAPTIONS[::-1] * 2) == ordered
    assert captions_digest(ordered) != captions_digest(in_order(CAPTIONS[1:]))


def test_an_unfinished_cache_is_refused_and_one_that_is_none(tmp_path):
    root = write(tmp_path / "cache", shards=(0, 2))
    with pytest.raises(ValueError, match="2 of 4 files are missing"):
        open_cache(str(root))
    with pytest.raises(ValueError, match="no embedding cache"):
        open_cache(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_digest": "b" * 64, "encoder": "elsewhere"}, "aaaaaaaaaaaa .*here.* bbbb.*elsewh"),
        ({"num_tokens": N + 1}, "num_tokens 6, not 7"),
        ({"captions_digest": "0"}, "captions_digest"),
    ],
)
def test_a_folder_begun_otherwise_is_left_alone(tmp_path, change, message):
    root = write(tmp_path / "cache")
    before = {path: path.read_bytes() for path in root.iterdir()}
    ordered = in_order(CAPTIONS)
    begin_cache(root, header_of(ordered), ordered)
    with pytest.raises(ValueError, match=message):
        begin_cache(root, header_of(ordered, **change), ordered)
    assert {path: path.read_bytes() for path in root.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_kill_before_the_header_leaves_a_folder_to_go_on_in(tmp_path):
    whole = write(tmp_path / "whole")
    root = tmp_path / "killed"
    root.mkdir()
    (root / "keys.npy").write_bytes((whole / "keys.npy").read_bytes()[:40])
    (root / ".header.json.part").write_text("{")
    write(root)
    assert {p.name: p.read_bytes() for p in root.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }


@pytest.mark.parametrize(
    "record",
    [
        b"",
        save({"caption": np.frombuffer(b"a", np.uint8)}),
        save(
            {
                "caption": np.frombuffer(b"a", np.uint8),
                "tokens": np.zeros(3, np.int8),
                "text_emb": np.zeros((1, 2), np.uint8),
            }
        ),
    ],
    ids=["empty", "no embedding", "another dtype"],
)
def test_a_record_of_something_else_is_named_with_its_file(tmp_path, record):
    root = write(tmp_path / "cache")
    header = header_of(CAPTIONS)
    shard = root / header.shards[0]
    shard.unlink()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for _ in range(header.shard_captions):
        writer.write(record)
    writer.close()
    cache = open_cache(str(root))
    with pytest.raises(ValueError, match="cannot be read") as raised:
        for caption in CAPTIONS:
            cache.read(caption)
    assert str(shard) in str(raised.value)


def _too_few(shard):
    write_shard(shard, map(entry_of, in_order(CAPTIONS)[4:7]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.write_bytes(shard.read_bytes()[:-1]),
        lambda shard: shard.write_bytes(shard.read_bytes()[:70_000]),
        lambda shard: shard.write_bytes(b"a red circle\n" * 10_000),
        lambda shard: (shard.unlink(), shard.mkdir()),
        _too_few,
    ],
    ids=["empty", "a byte short", "cut", "text", "folder", "too few records"],
)
def test_a_file_cut_short_or_of_something_else_is_named_when_the_cache_is_opened(tmp_path, damage):
    root = write(tmp_path / "cache")
    shard = root / header_of(CAPTIONS).shards[1]
    damage(shard)
    with pytest.raises(ValueError, match="damaged, or of another cache") as caught:
        open_cache(str(root))
    assert str(caught.value).startswith(f"{shard}: ") and "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    root = write(tmp_path / "cache")
    shard = root / header_of(CAPTIONS).shards[1]
    open_cache(str(root))  # all modules that it needs are there
    shard.chmod(0)
    with unprivileged(root), pytest.raises(PermissionError, match=shard.name):
        open_cache(str(root))


def test_a_file_in_the_place_of_another_is_named(tmp_path):
    root = write(tmp_path / "cache")
    shards = header_of(CAPTIONS).shards
    (root / shards[1]).write_bytes((root / shards[0]).read_bytes())
    cache = open_cache(str(root))
    with pytest.raises(ValueError, match="holds other captions; delete it") as caught:
        cache(in_order(CAPTIONS)[4:8])
    assert str(caught.value).startswith(f"{root / shards[1]}: ")


def test_embeddings_of_another_width_or_length_are_named(tmp_path):
    root, ordered = write(tmp_path / "cache"), in_order(CAPTIONS)
    shard = root / header_of(CAPTIONS).shards[0]
    for tokens, width in ((3, D + 1), (N + 1, D)):
        entries = [
            CaptionEmbedding(
                caption=caption,
                tokens=np.ones(tokens, np.int32),
                text_emb=np.ones((tokens, width)),
            )
            for caption in ordered[:4]
        ]
        write_shard(shard, entries)
        with pytest.raises(ValueError, match=r"embeddings of shape .* for . tokens") as caught:
            open_cache(str(root)).read(ordered[0])
        assert str(caught.value).startswith(f"{shard}: ")


def test_damage_is_named_with_its_file(tmp_path):
    root = write(tmp_path / "cache")
    shard = root / header_of(CAPTIONS).shards[1]
    content = bytearray(shard.read_bytes())
    # In the records, which come first; a damaged index at the end is noticed sooner.
    for i in range(100, 600):
        content[i] ^= 0xFF
    shard.write_bytes(content)
    cache = open_cache(str(root))
    with pytest.raises(ValueError, match="cannot be read") as caught:
        cache(CAPTIONS)
    assert str(caught.value).startswith(f"{shard}: ")


def test_headers_of_another_format_or_with_unknown_fields_are_refused(tmp_path):
    root = write(tmp_path / "cache")
    file = root / "header.json"
    text = file.read_text()
    file.write_text(text.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
    with pytest.raises(ValueError, match=r"header\.json: format_version: 99, this library reads"):
        open_cache(str(root))
    file.write_text(text.replace('"width"', '"breadth"'))
    with pytest.raises(ValueError, match="breadth: unknown field"):
        open_cache(str(root))


def _without(file):
    file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _without,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-8]),
        lambda file: np.save(file, np.uint64(3)),
        lambda file: np.save(file, np.zeros(len(CAPTIONS))),
        lambda file: np.save(file, np.array([None] * len(CAPTIONS), object), allow_pickle=True),
        lambda file: np.savez(file.open("wb"), *CAPTIONS),
        lambda file: np.save(file, np.load(file)[::-1]),
    ],
)
def test_damaged_keys_are_refused_unread_and_written_anew(tmp_path, damage):
    root = write(tmp_path / "cache")
    damage(root / "keys.npy")
    with pytest.raises(ValueError, match=r"keys\.npy: ") as caught:
        open_cache(str(root))
    assert "\n" not in str(caught.value)
    ordered = in_order(CAPTIONS)
    begin_cache(root, header_of(ordered), ordered)
    check_batch(open_cache(str(root)), CAPTIONS)


def test_keys_of_other_captions_are_written_anew(tmp_path):
    root, ordered = write(tmp_path / "cache"), in_order(CAPTIONS)
    np.save(root / "keys.npy", np.arange(len(ordered), dtype=np.uint64))
    begin_cache(root, header_of(ordered), ordered)
    check_batch(open_cache(str(root)), CAPTIONS)


def test_a_header_that_claims_more_captions_than_there_are_keys(tmp_path):
    """Of which the first thing asked was whether their millions of files exist."""
    root = write(tmp_path / "cache")
    file = root / "header.json"
    header = json.loads(file.read_text())
    file.write_text(json.dumps(header | {"captions": 10**18}))
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"keys\.npy: holds something else than 1000000000"):
        open_cache(str(root))
    assert time.monotonic() - started < 5


def test_a_header_nested_too_deep_is_named(tmp_path):
    root = write(tmp_path / "cache")
    (root / "header.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"header\.json: damaged, it is not JSON"):
        open_cache(str(root))


def test_a_cache_without_a_name_is_called_so():
    with pytest.raises(ValueError, match=r"text\.cache: its folder has an empty name"):
        open_cache("")


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path, monkeypatch):
    class Full(embedding_cache.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("write() failed: No space left on device;\nat byte 20000")

    monkeypatch.setattr(embedding_cache, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"one\.array_record: cannot be written \(write\(\) failed"):
        embedding_cache.write_shard(tmp_path / "one.array_record", [])
    assert not list(tmp_path.iterdir())
