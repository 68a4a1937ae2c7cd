"""Captions out of files: text, JSON lines, CSV, Parquet, or a prepared dataset."""

import csv
import importlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from imagen_video.files import any_path, local_path

FIELD = "caption"


def read_captions(path: str, *, field: str = FIELD) -> Iterator[str]:
    """Yields the captions of a file or dataset, unchanged: training finds them by their letters.

    Args:
      path: by its ending `.txt`, one caption a line, empty lines passed over; `.jsonl`, an object a
        line; `.csv` or `.tsv` with a header line; `.parquet`. Or the folder of a prepared dataset
        (TFDS), of which all splits are read.
      field: name of the column or entry that holds the caption; a text file has none.

    Raises:
      ValueError: naming file and line: it is missing, of another kind, or damaged; an entry lacks
        the field; or a package is needed that is not installed.
    """
    if not path:  # As an unset variable of the shell is.
        raise ValueError("captions: their file or folder has an empty name")
    file = local_path(path)
    if file.is_dir():
        return _prepared(file, field)
    if not file.is_file():
        raise ValueError(f"{path}: no such file of captions")
    readers: dict[str, Callable[[pathlib.Path, str], Iterator[str]]] = {
        ".txt": _text,
        ".jsonl": _json_lines,
        ".csv": lambda file, field: _table(file, field, ","),
        ".tsv": lambda file, field: _table(file, field, "\t"),
        ".parquet": _parquet,
    }
    if file.suffix not in readers:
        raise ValueError(f"{path}: ends in none of {', '.join(readers)}, and is no folder")
    return readers[file.suffix](file, field)


def read_lines(path: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 text file of any name, local or gs://, empty ones passed over.

    Raises:
      ValueError: naming file and line: it is not UTF-8.
      OSError: it cannot be read.
    """
    return (line for _, line in _lines(any_path(path)) if line.strip())


def _lines(file: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends. Only line feeds end one: captions may hold the others."""
    with epath.Path(file).open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                # Some editors begin a file with a byte order mark.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: not UTF-8") from error
            yield number, text.rstrip("\r\n")


def _text(file: pathlib.Path, field: str) -> Iterator[str]:
    del field  # a line has none
    return read_lines(str(file))


def _json_lines(file: pathlib.Path, field: str) -> Iterator[str]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}:{number}: not JSON ({error})") from error
        if not isinstance(entry, dict) or field not in entry:
            raise ValueError(f"{file}:{number}: no object with {field!r}")
        yield _checked(entry[field], f"{file}:{number}")


def _table(file: pathlib.Path, field: str, delimiter: str) -> Iterator[str]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        rows = csv.DictReader(opened, delimiter=delimiter, strict=True)
        try:
            _check_columns(file, rows.fieldnames or [], field)
            for row in rows:
                yield _checked(row[field], f"{file}:{rows.line_num}")
        except csv.Error as error:
            raise ValueError(f"{file}: after line {rows.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 after line {rows.line_num}") from error


def _parquet(file: pathlib.Path, field: str) -> Iterator[str]:
    pyarrow = _needed("pyarrow", file)
    parquet = _needed("pyarrow.parquet", file)
    row = 0
    try:
        with parquet.ParquetFile(file) as opened:
            _check_columns(file, opened.schema_arrow.names, field)
            for batch in opened.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield _checked(value, f"{file}: row {row}")
                    row += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 after row {row}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a Parquet file ({' '.join(str(error).split())})") from error


def _prepared(folder: pathlib.Path, field: str) -> Iterator[str]:
    if not (folder / "dataset_info.json").is_file():
        raise ValueError(f"{folder}: no prepared dataset, it has no dataset_info.json")
    tfds = _needed("tensorflow_datasets", folder)
    try:
        builder = tfds.builder_from_directory(folder)
        splits = {name: builder.as_data_source(name) for name in sorted(builder.info.splits)}
    except Exception as error:  # Of protobuf, of versions, of features: whatever TFDS meets.
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: no prepared dataset ({reason})") from error
    _check_columns(folder, list(builder.info.features), field)
    # Of a record nothing else is decoded, no clip.
    caption = tfds.features.FeaturesDict({field: builder.info.features[field]})
    for split, source in splits.items():
        for i, record in enumerate(source.data_source):
            value = caption.deserialize_example_np(record)[field]
            value = value.decode() if isinstance(value, bytes) else value
            yield _checked(value, f"{folder}: {split} {i}")


def _check_columns(where: pathlib.Path, columns: list[str], field: str) -> None:
    if field not in columns:
        known = ", ".join(columns) or "nothing"
        raise ValueError(f"{where}: no column {field!r}; it has {known}")


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the caption is {value!r}, not text")
    return value


def _needed(module: str, where: pathlib.Path) -> Any:
    package = {"tensorflow_datasets": "tensorflow-datasets"}.get(module, module.split(".")[0])
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{where}: reading it needs the package {package}, install it") from error
