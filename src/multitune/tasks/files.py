"""Rows of data files as streams: JSON lines, JSON, CSV, TSV and Parquet, the text formats also with gzip.

A reader yields (place, row) pairs. The place is ":12" for line 12 and ":row 12" where a format has no lines. The row is
a mapping, or a `BadRow` that says why there is none. Memory does not grow with the file, except for a JSON file that
holds one list.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRow

Row = tuple[str, dict[str, Any] | BadRow]
Reader = Callable[[Path], Iterator[Row]]

_LARGEST_FIELD = 16 * 2**20
"""Characters of a CSV field. The limit stops a quote that is never closed from reading the rest of the file."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def reader_of(path: Path) -> Reader | None:
    """The reader of a file by its suffix (that before ".gz"), or None where the format is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        reader = READERS.get("".join(suffixes[-2:-1]))
        return None if reader is read_parquet else reader
    return READERS.get("".join(suffixes[-1:]))


def read_file(path: Path) -> Iterator[Row]:
    """Yield (place, row) for every row of a file, by its suffix.

    Raises:
        MultituneError: the format is unknown, or the file cannot be read as a whole (rights, damage, no header).
    """
    reader = reader_of(path)
    if reader is None:
        raise unknown_format(path)
    with _readable(path):
        yield from reader(path)


def unknown_format(path: Path) -> MultituneError:
    """The error for a file whose suffix says nothing."""
    return MultituneError(
        f"The format of '{path.name}' is not known.",
        str(path),
        f"Name it by one of {', '.join(READERS)}; the text formats also with .gz behind.",
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MultituneError(
            f"{path.name} is damaged or cut short: {error}", str(path), "Make or copy the file again."
        ) from error
    except OSError as error:
        raise MultituneError(
            f"{path.name} cannot be read: {error.strerror or error}.", str(path), "Check the path and its permissions."
        ) from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def read_json(path: Path) -> Iterator[Row]:
    """JSON lines, or one list of objects: whichever the first character says."""
    with _open(path) as file:
        first = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]
        file.seek(0)
        yield from _json_list(path, file) if first == b"[" else _json_lines(file)


def _json_lines(file: IO[bytes]) -> Iterator[Row]:
    decode = _DECODER.decode
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.isspace():
            continue
        try:
            text = line.decode()
            fields = decode(text)
        except UnicodeDecodeError as error:
            yield f":{number}", _not_utf8(error)
            continue
        except json.JSONDecodeError as error:
            cut = "; the line ends too early" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""
            yield f":{number}", BadRow(f"not valid JSON at column {error.pos + 1}: {error.msg}{cut}")
            continue
        except (ValueError, RecursionError) as error:
            yield f":{number}", BadRow(f"not valid JSON: {error}")
            continue
        yield f":{number}", _object(fields, "\\ud" in text or "\\uD" in text)


def _json_list(path: Path, file: IO[bytes]) -> Iterator[Row]:
    try:
        rows = _DECODER.decode(file.read().removeprefix(_BYTE_ORDER_MARK).decode())
    except (ValueError, RecursionError) as error:
        raise MultituneError(
            f"{path.name} is not valid JSON: {error}", str(path), "Mend it, or write one object per line as .jsonl."
        ) from error
    for number, fields in enumerate(rows, start=1):
        yield f":row {number}", _object(fields, True)


def _object(fields: Any, check_surrogates: bool) -> dict[str, Any] | BadRow:
    """The row if it is one; half of an escaped surrogate pair is text that no tokenizer takes."""
    if not isinstance(fields, dict):
        return BadRow(f"a JSON object was expected, not {_JSON_NAMES[type(fields)]}")
    if check_surrogates:
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow("half of a \\ud800-\\udfff surrogate pair is no character")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def _not_utf8(error: UnicodeDecodeError) -> BadRow:
    return BadRow(f"byte 0x{error.object[error.start]:02x} at place {error.start + 1} is not UTF-8")


def read_csv(path: Path) -> Iterator[Row]:
    """Comma-separated values with a header and double quotes; all values are text.

    Semicolons separate where the header has more of them than commas: what spreadsheets write in countries with a
    decimal comma.
    """
    with _open(path) as file:
        header = file.readline().decode(errors="replace")
    return _read_separated(path, max(",;", key=lambda delimiter: _columns(header, delimiter)))


def _columns(header: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=delimiter), ()))
    except csv.Error:
        return 0


def read_tsv(path: Path) -> Iterator[Row]:
    """Tab-separated values with a header and double quotes; all values are text."""
    return _read_separated(path, "\t")


def _read_separated(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
    undecodable: dict[int, BadRow] = {}
    with _open(path) as file:
        reader = csv.reader(_decoded_lines(file, undecodable), delimiter=delimiter, strict=True)
        header = _header(path, reader, undecodable)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                undecodable.clear()
                yield f":{line}", BadRow(f"not valid CSV: {error}")
                continue
            if undecodable:
                yield f":{line}", undecodable.popitem()[1]
                undecodable.clear()
            elif len(values) == len(header):
                yield f":{line}", dict(zip(header, values, strict=True))
            elif values:  # an empty line is no row
                yield f":{line}", BadRow(f"{len(values)} columns where the header has {len(header)}")


def _decoded_lines(file: IO[bytes], undecodable: dict[int, BadRow]) -> Iterator[str]:
    """Lines as text; those that are not UTF-8 are noted, so that the row they belong to can be given up."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            undecodable[number] = _not_utf8(error)
            yield line.decode(errors="replace")


def _header(path: Path, reader: Iterator[list[str]], undecodable: dict[int, BadRow]) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _bad_header(path, f"is not valid CSV: {error}") from error
    if header is None:
        return []
    if undecodable:
        raise _bad_header(path, f"cannot be decoded: {undecodable[1].reason}")
    if not all(header) or len(set(header)) < len(header):
        raise _bad_header(path, f"has an empty or a repeated name: {', '.join(map(repr, header))}")
    return header


def _bad_header(path: Path, reason: str) -> MultituneError:
    return MultituneError(
        f"The header of {path.name} {reason}.", f"{path}:1", "Give every column a name of its own in the first line."
    )


def read_parquet(path: Path) -> Iterator[Row]:
    """Parquet, a batch of rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield f":row {number}", fields
    except pyarrow.ArrowException as error:
        raise MultituneError(
            f"{path.name} is not a whole Parquet file: {error}", str(path), "Make or copy the file again."
        ) from error


READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
