"""Captions come out of every kind of file as they went in, and a bad line is named."""

import csv
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from memory_bucket import buckets

from imagen_video.data.captioned_shapes.builder import CaptionedShapes, CaptionedShapesConfig
from imagen_video.data.captions import read_captions, read_lines
from imagen_video.files import any_path

# Spaces at the ends, quotes, commas, a line separator that is no line feed, letters beyond ASCII.
CAPTIONS = [" a red circle ", 'the word "JUMP", twice', "une étoile\u2028bleue", "赤い円", "🎈"]


def write(folder, kind, captions, field="caption"):
    path = folder / f"captions.{kind}"
    if kind == "txt":
        path.write_bytes("\n".join(captions).encode())
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({field: c, "id": 3}) for c in captions) + "\n")
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as opened:
            rows = csv.writer(opened, delimiter="\t" if kind == "tsv" else ",")
            rows.writerows([["id", field], *(["3", c] for c in captions)])
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": [3] * len(captions), field: captions}), path)
    return path


def error(path, **options):
    with pytest.raises(ValueError) as raised:
        list(read_captions(str(path), **options))
    message = str(raised.value)
    assert "\n" not in message and message.startswith(str(path))
    return message


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_captions(tmp_path, kind):
    assert list(read_captions(str(write(tmp_path, kind, CAPTIONS)))) == CAPTIONS


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_field_may_have_another_name_and_a_wrong_one_is_named(tmp_path, kind):
    path = write(tmp_path, kind, CAPTIONS, field="text")
    assert list(read_captions(str(path), field="text")) == CAPTIONS
    assert "'caption'" in error(path)


def test_a_text_file_of_windows_with_empty_lines(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa red circle\r\n\r\n  \r\na blue star\r\n")
    assert list(read_captions(str(path))) == ["a red circle", "a blue star"]


def test_lines_may_lie_in_a_bucket():
    with buckets():
        any_path("gs://bucket/prompts").write_text("a red circle\n\na blue star\n")
        assert list(read_lines("gs://bucket/prompts")) == ["a red circle", "a blue star"]


def test_half_a_surrogate_pair_in_json_is_a_caption(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"caption": "a \\ud83c circle"}\n')
    assert list(read_captions(str(path))) == ["a \ud83c circle"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", b"a circle\n\xff\xfe\n", ":2: not UTF-8"),
        ("captions.jsonl", b'{"caption": "a"}\n{"caption": \n', ":2: not JSON"),
        ("captions.jsonl", b'{"caption": "a"}\n["b"]\n', ":2: no object with 'caption'"),
        ("captions.jsonl", b"[" * 100_000, ":1: not JSON"),
        ("captions.jsonl", b'{"caption": 3}\n', ":1: the caption is 3, not text"),
        ("captions.csv", b"caption,id\n", None),
        ("captions.csv", b"", "no column 'caption'; it has nothing"),
        ("captions.csv", b"id,caption\n1,a\n2\n", ":3: the caption is None, not text"),
        ("captions.csv", b'caption\n"a" b\n', ": after line 1: "),
        ("captions.csv", b"caption\na\n\xff\n", "not UTF-8"),
        ("captions.parquet", b"PAR1 but no more", "not a Parquet file"),
        ("captions.doc", b"a circle", "ends in none of .txt, .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    if message is None:
        assert list(read_captions(str(path))) == []
    else:
        assert message in error(path)


def test_parquet_text_that_is_not_utf8_is_named_with_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    offsets = np.array([0, 8, 10], np.int32)
    text = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"a circle\xff\xfe")
    )
    path = tmp_path / "captions.parquet"
    parquet.write_table(pyarrow.table({"caption": text}), path)
    assert "not UTF-8 after row 0" in error(path)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    assert "no such file" in error(tmp_path / "captions.txt")
    assert "no prepared dataset" in error(tmp_path)


def test_a_missing_value_of_parquet_is_named_with_its_row(tmp_path):
    path = write(tmp_path, "parquet", ["a circle", None])
    assert "row 1: the caption is None" in error(path)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "captions.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs the package pyarrow" in error(path)


def test_a_prepared_dataset_gives_the_captions_of_all_its_splits(tmp_path):
    config = CaptionedShapesConfig(
        name="micro", height=8, width=8, frames=2, fps=1.0, duration=2.0, videos=12, images=10
    )
    builder = CaptionedShapes(data_dir=str(tmp_path), config=config)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    found = list(read_captions(str(builder.data_path)))
    expected = [
        record["caption"].decode()
        for split in ("test", "test_images", "train", "train_images")
        for record in builder.as_data_source(split)
    ]
    assert found == expected and len(found) == 12 + 1 + 10 + 1
    assert "no column 'text'; it has" in error(builder.data_path, field="text")
    # As if it were in TFDS's usual format, of which no record can be read by its number.
    info = pathlib.Path(builder.data_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    assert "no prepared dataset (Random access data source" in error(builder.data_path)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_prepared_dataset_is_named(tmp_path, content):
    (tmp_path / "dataset_info.json").write_text(content)
    assert f"{tmp_path}: no prepared dataset (" in error(tmp_path)
