"""Sources: files, folders, patterns, saved sets, hub data sets and generators."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.sources import label_names, read_examples, source_files, source_fingerprint
from multitune.tasks.task import Source


def a_rows(start: int, stop: int) -> list[dict[str, int]]:
    return [{"a": number} for number in range(start, stop)]


def fields(source: Source, folder) -> list[dict]:
    return [example.fields for example in read_examples(source, folder)]


def test_an_example_knows_its_id_and_its_place(write_rows, tmp_path):
    write_rows("data/a.jsonl", a_rows(1, 4))
    examples = list(read_examples(Source(path="data/a.jsonl"), tmp_path))
    assert [example.fields for example in examples] == a_rows(1, 4)
    assert [example.id for example in examples] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert [example.where for example in examples] == ["data/a.jsonl:1", "data/a.jsonl:2", "data/a.jsonl:3"]


def test_the_id_does_not_depend_on_where_the_folder_lies(write_rows, tmp_path):
    path = write_rows("data/a.jsonl", a_rows(1, 3))
    relative, absolute = Source(path="data/a.jsonl"), Source(path=str(path))
    ids = [[example.id for example in read_examples(source, tmp_path)] for source in (relative, absolute)]
    assert ids[0] == ids[1]
    assert source_fingerprint(relative, tmp_path) == source_fingerprint(absolute, tmp_path)


def test_a_folder_is_its_data_files_in_order_of_their_names(write_rows, tmp_path):
    write_rows("data/b.jsonl", a_rows(3, 5))
    write_rows("data/a.jsonl", a_rows(1, 3))
    write_rows("data/deep/a.jsonl", a_rows(5, 6))
    write_rows("data/.hidden.jsonl", a_rows(9, 10))
    (tmp_path / "data/README.md").write_text("about")
    (tmp_path / "data/c.jsonl.gz").write_bytes(gzip.compress(b'{"a": 0}\n'))
    examples = list(read_examples(Source(path="data"), tmp_path))
    assert [example.fields["a"] for example in examples] == [1, 2, 3, 4, 0, 5]
    assert [example.id for example in examples][-2:] == ["c.jsonl.gz:1", "deep/a.jsonl:1"]
    assert len({example.id for example in examples}) == 6


def test_a_pattern_is_the_files_that_match(write_rows, tmp_path):
    for name in ("part-2.jsonl", "part-1.jsonl", "other.jsonl"):
        write_rows(f"data/{name}", [{"file": name}])
    assert [row["file"] for row in fields(Source(path="data/part-*.jsonl"), tmp_path)] == [
        "part-1.jsonl",
        "part-2.jsonl",
    ]
    absolute = Source(path=str(tmp_path / "d*" / "part-?.jsonl"))
    assert [e.id for e in read_examples(absolute, tmp_path)] == ["data/part-1.jsonl:1", "data/part-2.jsonl:1"]


def test_rows_limits_what_is_read(write_rows, tmp_path):
    path = write_rows("a.jsonl", a_rows(1, 4))
    path.write_text(path.read_text() + "broken\n")
    assert fields(Source(path="a.jsonl", rows=2), tmp_path) == a_rows(1, 3)
    assert fields(Source(path="a.jsonl", rows=3), tmp_path) == a_rows(1, 4)  # the broken line is never looked at


def test_bad_rows_are_counted_or_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbroken\n{"a": 2}\n')
    bad_rows = BadRows()
    assert [e.fields for e in read_examples(Source(path="a.jsonl"), tmp_path, bad_rows)] == a_rows(1, 3)
    assert bad_rows.count == 1
    assert bad_rows.first[0][0] == "a.jsonl:2"
    with pytest.raises(MultituneError, match="not valid JSON") as error:
        fields(Source(path="a.jsonl"), tmp_path)
    assert error.value.where == "a.jsonl:2"


@pytest.mark.parametrize(
    ("path", "what", "mend"),
    [
        ("trian.jsonl", "'trian.jsonl' does not exist", "Did you mean 'train.jsonl'?"),
        ("no/train.jsonl", "does not exist", "There is no folder"),
        ("*.csv", "No file matches", "Check the pattern"),
        ("notes.txt", "format of 'notes.txt' is not known", ".jsonl, .ndjson, .json, .csv"),
        ("empty", "holds no file that can be read", "Known formats"),
    ],
)
def test_missing_and_unknown_files_are_refused_without_reading(write_rows, tmp_path, path, what, mend):
    write_rows("train.jsonl", a_rows(1, 2))
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MultituneError) as error:
        source_files(Source(path=path), tmp_path)
    assert what in error.value.what
    assert mend in error.value.mend


def test_a_file_without_rights_is_refused_in_words(write_rows, tmp_path):
    (tmp_path / "a.jsonl").mkdir()  # as unreadable as a file gets, for the superuser too
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    with pytest.raises(MultituneError, match="holds no file"):
        fields(Source(path="a.jsonl"), tmp_path)
    with pytest.raises(MultituneError, match="does not exist"):
        fields(Source(path="b.jsonl"), tmp_path)


# Saved data sets


@pytest.fixture
def saved(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    train = Dataset.from_dict({"text": ["a1", "a2", "a3"], "label": [0, 1, 1]}, features=features)
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "test": train.select([2])}).save_to_disk(tmp_path / "two")
    return tmp_path


def test_a_saved_data_set_is_read_and_its_label_names_are_known(saved):
    examples = list(read_examples(Source(path="one"), saved))
    assert [example.fields for example in examples][1] == {"text": "a2", "label": 1}
    assert [example.id for example in examples] == ["one:row 1", "one:row 2", "one:row 3"]
    assert label_names(Source(path="one"), saved) == {"label": ["bad", "good"]}
    assert [row["text"] for row in fields(Source(path="one", rows=2), saved)] == ["a1", "a2"]


def test_a_saved_data_set_of_several_splits_needs_the_split(saved):
    assert [row["text"] for row in fields(Source(path="two", split="test"), saved)] == ["a3"]
    with pytest.raises(MultituneError, match="has several splits") as error:
        fields(Source(path="two"), saved)
    assert "one of test, train" in error.value.mend
    with pytest.raises(MultituneError, match=r"no split 'tset'\. Did you mean 'test'"):
        fields(Source(path="two", split="tset"), saved)


def test_a_damaged_saved_data_set_is_refused(saved):
    (saved / "one" / "state.json").write_text("{")
    with pytest.raises(MultituneError, match="saved data set cannot be read"):
        fields(Source(path="one"), saved)


# The hub


def test_without_a_network_a_hub_id_is_refused_with_the_way_out(tmp_path):
    code = """
        from pathlib import Path
        from multitune.errors import MultituneError
        from multitune.tasks.sources import read_examples
        from multitune.tasks.task import Source
        try:
            list(read_examples(Source(hub="glue", name="sst2", split="train"), Path()))
        except MultituneError as error:
            print(error)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=environment
    )
    assert "The data set 'glue' cannot be read from the hub" in found.stdout
    assert "give path: a file, or a folder that Dataset.save_to_disk left" in found.stdout


class HubOfOneDataSet:
    """Stands for the network: the answers of the hub's own libraries for one data set."""

    def __init__(self, monkeypatch, data):
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)
        monkeypatch.setattr("datasets.load_dataset", self.load_dataset)
        self.data, self.asked = data, []

    def dataset_info(self, repo_id, revision=None, timeout=None):
        return type("Info", (), {"sha": f"commit-of-{revision}"})()

    def load_dataset(self, path, name, split, revision, streaming):
        self.asked.append((path, name, split, revision, streaming))
        return self.data if split is None else self.data[split]


def test_a_hub_data_set_is_streamed_at_a_known_commit(monkeypatch, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"text": ["a1", "a2"], "label": [0, 1]}, features=features).to_iterable_dataset()
    hub = HubOfOneDataSet(monkeypatch, {"train": rows, "test": rows})
    source = Source(hub="org/set", name="small", split="train", revision="v1")
    examples = list(read_examples(source, tmp_path))
    assert hub.asked == [("org/set", "small", "train", "commit-of-v1", True)]
    assert [example.fields["text"] for example in examples] == ["a1", "a2"]
    assert examples[0].id == "org/set:row 1"
    assert label_names(source, tmp_path) == {"label": ["bad", "good"]}
    assert source_files(source, tmp_path) == []
    other = source.model_copy(update={"revision": "v2"})
    assert source_fingerprint(source, tmp_path) != source_fingerprint(other, tmp_path)
    with pytest.raises(MultituneError, match="several splits"):
        list(read_examples(Source(hub="org/set"), tmp_path))


# Generators


@pytest.fixture
def generators(tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import beside

            def rows(n, start=0):
                for number in range(start, n):
                    yield {"a": number, "word": beside.WORD}

            def named():
                yield {"id": "first", "a": 1}

            def mixed():
                yield {"a": 1}
                yield "text"

            def failing():
                yield {"a": 1}
                raise RuntimeError("out of rows")

            def plain():
                return []
            """
        )
    )
    return tmp_path


def test_a_generator_beside_the_recipe_is_called_with_its_arguments(generators):
    source = Source(generator="mine:rows", arguments={"n": 3, "start": 1})
    examples = list(read_examples(source, generators))
    assert [example.fields for example in examples] == [{"a": 1, "word": "beside"}, {"a": 2, "word": "beside"}]
    assert [example.id for example in examples] == ["mine:rows:row 1", "mine:rows:row 2"]
    assert next(read_examples(Source(generator="mine:named"), generators)).id == "first"


def test_an_endless_generator_stops_at_rows(tmp_path):
    (tmp_path / "endless.py").write_text("def rows():\n    while True:\n        yield {'a': 1}\n")
    assert fields(Source(generator="endless:rows", rows=3), tmp_path) == [{"a": 1}] * 3


def test_modules_of_one_name_in_two_folders_stay_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def rows():\n    yield {{'from': '{name}'}}\n")
    found = [fields(Source(generator="mine:rows"), tmp_path / name) for name in ("one", "two")]
    assert found == [[{"from": "one"}], [{"from": "two"}]]


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("mine:row", {"n": 1}, "no function 'row'. Did you mean 'rows'?"),
        ("mine:rows", {}, "does not take these arguments: missing a required argument: 'n'"),
        ("mine:failing", {}, "failed after 1 rows: RuntimeError: out of rows"),
        ("mine:plain", {}, "'plain' is not a generator function"),
        ("os:system", {"command": "echo reached"}, "'system' is not a generator function"),
        ("nowhere:rows", {}, "There is no module 'nowhere'"),
        ("mine", {}, "'mine' names no generator"),
        ("synthetic:ad", {}, "no synthetic skill 'ad'. Did you mean 'add'?"),
        ("synthetic:add", {"row": 1}, "unexpected keyword argument 'row'"),
    ],
)
def test_generators_that_cannot_run_are_refused_in_words(generators, name, arguments, what):
    with pytest.raises(MultituneError) as error:
        fields(Source(generator=name, arguments=arguments), generators)
    assert what in error.value.what


def test_what_is_no_mapping_is_a_bad_row(generators):
    bad_rows = BadRows()
    assert len(list(read_examples(Source(generator="mine:mixed"), generators, bad_rows))) == 1
    assert bad_rows.first == [("mine:mixed :row 2", "the generator yielded str, not a mapping")]


def test_synthetic_skills_have_ids_of_their_own(tmp_path):
    source = Source(generator="synthetic:copy_letters", arguments={"rows": 20, "seed": 3})
    ids = [example.id for example in read_examples(source, tmp_path)]
    assert len(set(ids)) == 20
    assert ids == [example.id for example in read_examples(source, tmp_path)]


# Fingerprints


def test_the_fingerprint_is_of_the_content_and_of_what_chooses_from_it(write_rows, tmp_path):
    path = write_rows("a.jsonl", a_rows(1, 3))
    first = source_fingerprint(Source(path="a.jsonl"), tmp_path)
    assert len(first) == 64
    assert first == source_fingerprint(Source(path="a.jsonl"), tmp_path)
    assert first != source_fingerprint(Source(path="a.jsonl", rows=1), tmp_path)
    path.write_text(json.dumps({"a": 3}) + "\n")
    assert first != source_fingerprint(Source(path="a.jsonl"), tmp_path)


def test_the_fingerprint_of_a_generator_is_of_code_and_arguments(generators):
    first = source_fingerprint(Source(generator="mine:rows", arguments={"n": 3}), generators)
    assert first == source_fingerprint(Source(generator="mine:rows", arguments={"n": 3}), generators)
    assert first != source_fingerprint(Source(generator="mine:rows", arguments={"n": 4}), generators)
    path = generators / "mine.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert first != source_fingerprint(Source(generator="mine:rows", arguments={"n": 3}), generators)
