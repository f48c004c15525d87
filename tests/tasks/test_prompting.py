"""From rows to prompts: choices, answers, splits, templates in turn, bad rows, constant memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.prompting import is_resolved, prompted_examples, resolve, split_of
from multitune.tasks.task import Task

LABEL = {"kind": "label", "prompt": "{{ text }}", "target": "{{ label }}", "choices": ["a", "b"]}


@pytest.fixture
def ask(write_rows, tmp_path):
    """All prompted examples of rows in one file, read as a split."""

    def ask(rows, split="train", templates="rotate", bad_rows=None, **settings):
        write_rows("a.jsonl", rows)
        task = Task(**{"name": "toy", "train": "a.jsonl", **settings})
        return list(prompted_examples(task, split, tmp_path, templates=templates, bad_rows=bad_rows))

    return ask


# Answers of every kind


def test_a_label_is_an_index_and_its_target_the_text_of_the_choice(ask):
    rows = [{"text": "x", "label": "b"}, {"text": "y", "label": "a"}]
    found = ask(rows, **{**LABEL, "target": " {{ label }}\n"})
    assert [(p.prompt, p.target, p.label, p.choices, p.value) for p in found] == [
        ("x", "b", 1, ("a", "b"), None),
        ("y", "a", 0, ("a", "b"), None),
    ]


def test_raw_labels_become_the_words_that_they_map_to(ask):
    rows = [{"text": "x", "label": label} for label in (0, 1, 2)]
    found = ask(rows, **{**LABEL, "choices": {0: "bad", 1: "bad", 2: "good"}})
    assert [(p.target, p.label) for p in found] == [("bad", 0), ("bad", 0), ("good", 1)]
    assert found[0].choices == ("bad", "good")


@pytest.mark.parametrize(
    ("labels", "choices"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        ([True, False], ("False", "True")),
    ],
)
def test_choices_are_the_distinct_labels_in_order(ask, labels, choices):
    found = ask([{"text": "x", "label": label} for label in labels])
    assert found[0].choices == choices
    assert [p.target for p in found] == [str(label) for label in labels]


def test_a_label_that_comes_late_is_a_choice_too(ask):
    rows = [{"text": "x", "label": "a"}] * 500 + [{"text": "x", "label": "rare"}]
    assert ask(rows)[0].choices == ("a", "rare")


def test_more_labels_than_classes_can_be_are_refused(ask):
    with pytest.raises(MultituneError, match="more than 1000 different labels") as error:
        ask([{"text": "x", "label": f"l{number}"} for number in range(1001)])
    assert "kind: generate" in error.value.mend


def test_label_names_of_a_data_set_become_the_choices(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a1", "a2"], "label": [1, 1]}, features=features).save_to_disk(tmp_path / "saved")
    task = resolve(Task(name="toy", train="saved"), tmp_path)
    assert task.choices == {"0": "bad", "1": "good"}
    assert [(p.target, p.label) for p in prompted_examples(task, "train", tmp_path)] == [("good", 1)] * 2


def test_choose_takes_the_choices_of_every_row(ask):
    rows = [{"q": "x", "options": ["one", " two "], "a": "two"}, {"q": "y", "options": [1, 2, 3], "a": 1}]
    settings = {"kind": "choose", "prompt": "{{ q }}", "target": "{{ a }}"}
    for choices in ("options", "{{ options }}"):
        found = ask(rows, choices=choices, **settings)
        assert [(p.choices, p.label, p.target) for p in found] == [
            (("one", "two"), 1, "two"),
            (("1", "2", "3"), 0, "1"),
        ]
    (by_index,) = ask(rows[:1], choices="options", **{**settings, "target": "{{ options[0] }}"})
    assert by_index.label == 0


def test_choose_without_a_field_to_choose_from_is_refused(ask):
    with pytest.raises(MultituneError, match="says nowhere what to choose from"):
        ask([{"q": "x", "a": "y"}], kind="choose", prompt="{{ q }}", target="{{ a }}")


def test_regress_takes_numbers_from_numbers_and_text(ask):
    found = ask([{"text": "x", "label": 0.5}, {"text": "y", "label": "-1e3"}, {"text": "z", "label": 2}])
    assert [p.value for p in found] == [0.5, -1000.0, 2.0]
    assert found[0].label is None


def test_a_chat_can_be_a_label_task(ask):
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " 1 "}]}]
    (found,) = ask(rows, kind="label", choices={0: "no", 1: "yes"})
    assert (found.label, found.target, found.messages[-1].content) == (1, "yes", "yes")
    assert ask(rows, kind="label")[0].choices == ("1",)


# Bad rows


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        ({"text": "x", "label": "aa"}, LABEL, "the label 'aa' is none of the 2 choices. Did you mean 'a'?"),
        ({"text": "x", "label": ""}, LABEL, "the label '' is none of the 2 choices."),
        ({"text": "x"}, LABEL, "the row has no field 'label'"),
        ({"text": "x", "label": None}, LABEL, "a field of the template is null"),
        ({"text": ["x"], "label": "a"}, LABEL, "a field of the template is a list"),
        ({"text": "x", "label": " "}, {"kind": "generate"}, "the target is empty"),
        ({"text": "x", "label": "one"}, {"kind": "regress"}, "the target 'one' is not a finite number"),
        ({"text": "x", "label": "inf"}, {"kind": "regress"}, "the target 'inf' is not a finite number"),
        ({"text": "x", "label": "a"}, {"kind": "choose", "choices": "text"}, "the choices are str, not a list"),
        ({"text": [], "label": "a"}, {"kind": "choose", "choices": "text", "prompt": ""}, "the choices are list"),
        ({"text": ["a", "a"], "label": "a"}, {"kind": "choose", "choices": "text", "prompt": "?"}, "occurs twice"),
        ({"text": [["a"]], "label": "a"}, {"kind": "choose", "choices": "text", "prompt": "?"}, "is not text"),
        (
            {"text": ["b"], "label": "a"},
            {"kind": "choose", "choices": "text", "prompt": "?"},
            "none of the row's choices",
        ),
    ],
)
def test_a_bad_row_is_refused_with_line_and_reason(ask, row, settings, reason):
    settings = {"target": "{{ label }}", "prompt": "{{ text }}", **settings}
    with pytest.raises(MultituneError) as error:
        ask([row], **settings)
    assert "a.jsonl:1: " in error.value.what
    assert reason in error.value.what
    assert error.value.where == "tasks.toy.train"


def test_refused_rows_are_listed_up_to_ten_and_no_good_one_follows_them(tmp_path):
    rows = [{"text": "x", "label": "a"}] * 3 + [{"text": "x", "label": "c"}, {"text": "x", "label": "a"}] * 30
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    stream = prompted_examples(Task(name="toy", train="a.jsonl", **LABEL), "train", tmp_path)
    assert [next(stream).label for _ in range(3)] == [0, 0, 0]
    with pytest.raises(MultituneError) as error:
        next(stream)
    assert error.value.what.startswith("Task 'toy' (train) has at least 10 bad rows:\n    a.jsonl:4: the label 'c'")
    assert error.value.what.count("a.jsonl:") == 10


def test_a_malformed_line_among_good_ones_is_refused_with_the_exact_count(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\nbroken\n{"text": "x", "label": "a"}\n[]\n')
    with pytest.raises(MultituneError) as error:
        list(prompted_examples(Task(name="toy", train="a.jsonl", **LABEL), "train", tmp_path))
    assert "has 2 bad rows:\n    a.jsonl:2: not valid JSON" in error.value.what
    assert "\n    a.jsonl:4: a JSON object was expected, not a list" in error.value.what
    assert "on_bad_row: skip" in error.value.mend


def test_skipped_rows_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\nbroken\n{"text": "x", "label": "c"}\n')
    bad_rows = BadRows()
    task = Task(name="toy", train="a.jsonl", on_bad_row="skip", **LABEL)
    assert len(list(prompted_examples(task, "train", tmp_path, bad_rows=bad_rows))) == 1
    assert bad_rows.count == 2
    assert [where for where, _ in bad_rows.first] == ["a.jsonl:2", "a.jsonl:3"]


def test_a_task_without_rows_is_refused(ask):
    for settings in ({}, LABEL):
        with pytest.raises(MultituneError, match="Task 'toy' has no rows in its train split") as error:
            ask([], **settings)
        assert error.value.where == "tasks.toy.train"
    with pytest.raises(MultituneError, match=r"has no usable row and has 1 bad row:\n    a\.jsonl:1: the label 'c'"):
        ask([{"text": "x", "label": "c"}], on_bad_row="skip", **LABEL)
    with pytest.raises(MultituneError, match="Task 'toy' has no test data"):
        ask([{"text": "x", "label": "a"}], split="test", **LABEL)
    with pytest.raises(MultituneError, match="Task 'toy' has no data"):
        resolve(Task(name="toy"), None)


def test_metrics_must_exist_and_fit_the_kind(ask):
    with pytest.raises(MultituneError, match=r"no metric 'acuracy'\. Did you mean 'accuracy'"):
        ask([{"text": "x", "label": "a"}], metrics="acuracy")
    with pytest.raises(MultituneError, match="rouge_l is for tasks of kind generate, not label"):
        ask([{"text": "x", "label": "a"}], metrics="rouge_l")


# Templates in turn


def test_templates_take_turns_by_the_id_of_the_example(ask):
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(600)]
    settings = {**LABEL, "prompt": ["1 {{ text }}", "2 {{ text }}", "3 {{ text }}"]}
    rotated = ask(rows, **settings)
    assert [p.prompt for p in rotated] == [f"{p.template + 1} t{number}" for number, p in enumerate(rotated)]
    assert all(150 < count < 250 for count in Counter(p.template for p in rotated).values())
    assert [p.template for p in ask(rows[:50], **settings)] == [p.template for p in rotated[:50]]
    assert {p.template for p in ask(rows, templates="first", **settings)} == {0}
    assert [p.template for p in ask(rows[:2], templates="all", **settings)] == [0, 1, 2, 0, 1, 2]


def test_templates_are_paired_with_their_targets(ask):
    settings = {"kind": "generate", "prompt": ["1 {{ q }}", "2 {{ q }}"], "target": ["one {{ a }}", "two {{ a }}"]}
    found = ask([{"q": "x", "a": "y"}], templates="all", **settings)
    assert [(p.prompt, p.target) for p in found] == [("1 x", "one y"), ("2 x", "two y")]


# Shares of train


def test_shares_of_train_are_disjoint_and_whole(ask):
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(1000)]
    settings = {**LABEL, "test": {"fraction": 0.2}, "validation": {"fraction": 0.1}}
    found = {split: [p.example.id for p in ask(rows, split, **settings)] for split in ("train", "validation", "test")}
    assert sorted(id for ids in found.values() for id in ids) == sorted(f"a.jsonl:{n}" for n in range(1, 1001))
    assert 160 < len(found["test"]) < 240
    assert 70 < len(found["validation"]) < 130
    longer = [p.example.id for p in ask([*rows, *rows], "test", **settings)]
    assert longer[: len(found["test"])] == found["test"]  # more rows move none of the old ones


def test_a_share_may_be_limited_and_other_splits_are_left_alone(ask):
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(200)]
    assert len(ask(rows, "test", **{**LABEL, "test": {"fraction": 0.5, "rows": 7}})) == 7
    assert len(ask(rows, "validation", **{**LABEL, "test": {"fraction": 0.5}, "validation": "a.jsonl"})) == 200
    with pytest.raises(MultituneError, match="no rows in its test split"):
        ask(rows[:1], "test", **{**LABEL, "test": {"fraction": 0.000001}})


def test_rows_keep_their_side_when_the_file_changes_around_them(ask):
    rows = [{"text": f"t{number}", "label": "ab"[number % 2]} for number in range(300)]
    settings = {**LABEL, "test": {"fraction": 0.2}}
    before = {p.prompt for p in ask(rows, "test", **settings)}
    after = [p.prompt for p in ask([{"text": "new", "label": "a"}, *reversed(rows), *rows[:50]], "test", **settings)]
    assert before <= set(after) <= {*before, "new"}
    train = {p.prompt for p in ask([*rows, *rows], "train", **settings)}
    assert not train & before  # both copies of a row fall on one side


@given(content=st.text(), test=st.floats(0, 0.5), validation=st.floats(0, 0.49))
def test_a_larger_test_share_keeps_the_rows_of_a_smaller_one(content, test, validation):
    if split_of(content, test, validation) == "test":
        assert split_of(content, test + 0.1, 0) == "test"
    assert split_of(content, 0, 0) == "train"


# Resolving


def test_a_resolved_task_is_left_as_it_is(write_rows, tmp_path):
    write_rows("a.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    task = Task(name="toy", train="a.jsonl")
    resolved = resolve(task, tmp_path)
    assert not is_resolved(task)
    assert is_resolved(resolved)
    assert resolve(resolved, tmp_path) == resolved


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of about 40 MB is resolved, its labels are counted and all its rows are prompted, in 5 MB."""
    line = json.dumps({"text": "some words " * 150, "label": "a"}) + "\n"
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(25_000):
            file.write(line if number % 3 else line.replace('"a"', '"b"'))
    assert (tmp_path / "a.jsonl").stat().st_size > 40e6
    tracemalloc.start()
    try:
        task = resolve(Task(name="toy", train="a.jsonl", test={"fraction": 0.1}), tmp_path)
        rows = sum(1 for _ in prompted_examples(task, "train", tmp_path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert task.choices == ("a", "b")
    assert rows > 20_000
    assert peak < 5e6
