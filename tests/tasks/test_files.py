"""Readers of data files: what is written comes back, and what is broken is a bad row with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRow
from multitune.tasks.files import read_file, reader_of

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=2, unique=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def rows_of(path):
    return [row for _, row in read_file(path) if not isinstance(row, BadRow)]


def bad_rows_of(path):
    return [(place, row.reason) for place, row in read_file(path) if isinstance(row, BadRow)]


@settings(max_examples=50)
@given(rows=st.lists(st.dictionaries(text, json_values, max_size=4), max_size=6), escaped=st.booleans())
def test_json_lines_come_back(tmp_path_factory, rows, escaped):
    folder = tmp_path_factory.mktemp("json")
    lines = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(rows, ensure_ascii=escaped), encoding="utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert rows_of(folder / "a.jsonl") == rows
    assert rows_of(folder / "a.json") == rows
    assert rows_of(folder / "a.jsonl.gz") == rows


@settings(max_examples=50)
@given(
    data=st.data(),
    header=names.filter(lambda names: not any(";" in name for name in names)),  # see the test of semicolons
    # Python's writer leaves a bare "\r" unquoted where it ends lines with "\n"
    style=st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
)
def test_csv_and_tsv_come_back(tmp_path_factory, data, header, style):
    folder = tmp_path_factory.mktemp("csv")
    width = len(header)
    rows = data.draw(st.lists(st.lists(text, min_size=width, max_size=width), max_size=5))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, lineterminator=style[0], quoting=style[1])
        writer.writerow(header)
        writer.writerows(rows)
        (folder / name).write_bytes(out.getvalue().encode())
        assert rows_of(folder / name) == [dict(zip(header, row, strict=True)) for row in rows]


@settings(max_examples=20)
@given(rows=st.lists(st.tuples(text, st.integers(-(2**40), 2**40), st.lists(text, max_size=3)), min_size=1, max_size=5))
def test_parquet_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    written = [{"text": row[0], "label": row[1], "options": row[2]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(written), path, row_group_size=2)
    assert rows_of(path) == written
    assert [place for place, _ in read_file(path)] == [f":row {n}" for n in range(1, len(rows) + 1)]


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert rows_of(tmp_path / "a.jsonl") == rows_of(tmp_path / "a.json") == [{"a": 1}]
    assert rows_of(tmp_path / "a.csv") == [{"a": "1", "b": "2"}]


def test_a_json_file_may_hold_lines_and_a_lines_file_a_list(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "b.jsonl").write_text(' [{"a": 1},\n {"a": 2}]')
    assert rows_of(tmp_path / "a.json") == rows_of(tmp_path / "b.jsonl") == [{"a": 1}, {"a": 2}]


def test_broken_json_lines_are_bad_rows_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"a": 1}\n{"a": \n\n"text"\n[1]\n3\nnull\n{"a": "\xff"}\n{"a": NaN}\n{"a": "\\ud800"}\n'
        b'{"a": "\\ud83d\\ude00"}\n' + b'{"a":' * 100_000 + b"\n" + b'{"a": 2}'
    )
    bad = dict(bad_rows_of(path))
    assert rows_of(path) == [{"a": 1}, {"a": "😀"}, {"a": 2}]
    assert list(bad) == [":2", ":4", ":5", ":6", ":7", ":8", ":9", ":10", ":12"]
    assert bad[":2"] == "not valid JSON at column 8: Expecting value; the line ends too early"
    assert bad[":4"] == "a JSON object was expected, not a string"
    assert bad[":5"] == "a JSON object was expected, not a list"
    assert bad[":8"] == "byte 0xff at place 8 is not UTF-8"
    assert bad[":9"] == "not valid JSON: NaN is no JSON value"
    assert "surrogate" in bad[":10"]


def test_broken_csv_rows_are_bad_rows_with_the_line_where_they_begin(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'text,label\ngood,1\n"two\nlines",1\nshort\n\na,b,c\nby\xffte,1\n"q"x,1\nlast,2\n"never closed,1\n'
    )
    assert rows_of(path) == [
        {"text": "good", "label": "1"},
        {"text": "two\nlines", "label": "1"},
        {"text": "last", "label": "2"},
    ]
    assert [place for place, _ in read_file(path)] == [":2", ":3", ":5", ":7", ":8", ":9", ":10", ":11"]
    assert bad_rows_of(path) == [
        (":5", "1 columns where the header has 2"),
        (":7", "3 columns where the header has 2"),
        (":8", "byte 0xff at place 3 is not UTF-8"),
        (":9", "not valid CSV: ',' expected after '\"'"),
        (":11", "not valid CSV: unexpected end of data"),
    ]


def test_semicolons_separate_where_the_header_has_more_of_them(tmp_path):
    (tmp_path / "a.csv").write_text('text;score\n"one; two";1,5\n')
    assert rows_of(tmp_path / "a.csv") == [{"text": "one; two", "score": "1,5"}]
    (tmp_path / "b.csv").write_text('"text; or; title",score\na;b,1\n')
    assert rows_of(tmp_path / "b.csv") == [{"text; or; title": "a;b", "score": "1"}]


def test_a_long_csv_field_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * 500_000 + ",1\n")
    assert len(rows_of(tmp_path / "a.csv")[0]["text"]) == 500_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"text,text\n1,2\n", "repeated name"),
        ("a.csv", b"text,\n1,2\n", "an empty or"),
        ("a.tsv", b"te\xffxt\tlabel\n1\t2\n", "cannot be decoded"),
        ("a.csv", b'"text,label\n1,2\n', "not valid CSV"),
        ("a.json", b'[{"a": 1},', "is not valid JSON"),
        ("a.parquet", b"PAR1 no more", "not a whole Parquet file"),
        ("a.jsonl.gz", b"no gzip", "damaged or cut short"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-12], "damaged or cut short"),
        ("a.txt", b"text", "format of 'a.txt' is not known"),
        ("a.parquet.gz", b"text", "format of 'a.parquet.gz' is not known"),
        ("gz", b"text", "format of 'gz' is not known"),
    ],
)
def test_files_that_cannot_be_read_as_a_whole_are_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MultituneError, match=reason) as error:
        list(read_file(tmp_path / name))
    assert name in error.value.where


def test_empty_files_have_no_rows(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv"):
        (tmp_path / name).write_bytes(b"")
        assert list(read_file(tmp_path / name)) == []


def test_suffixes_name_the_format_whatever_their_case(tmp_path):
    known = ["a.JSONL", "a.v2.jsonl", "a.jsonl.gz", "a.csv.GZ", "a.ndjson", "a.tsv", "a.parquet"]
    assert all(reader_of(tmp_path / name) for name in known)
    assert not any(reader_of(tmp_path / name) for name in ["a", "a.gz", "jsonl", "a.txt", "a.jsonl.bak"])
