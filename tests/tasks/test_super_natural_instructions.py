"""Super-NaturalInstructions: the published prompts byte for byte, the published splits, and references of their own."""

from __future__ import annotations

import json

import pytest

from multitune.errors import MultituneError
from multitune.tasks.super_natural_instructions import (
    Definition,
    as_task,
    chosen_output,
    is_suite_folder,
    prompt_template,
    read_folder,
    rows_of,
    split_instances,
)
from multitune.tasks.templates import compile_template

TOY = Definition(
    "task1", "word analogy", "Say the opposite", (("hot", "cold"), ("big?", "small."), ("wet", "dry")),
    instances=tuple((f"in {n}", ("one", "two", "three")) for n in range(130)),
)  # fmt: skip


def rendered(definition, encoding, read, positive=2):
    return compile_template(prompt_template(definition, encoding, positive), "prompt")({"input": read})


def test_prompts_are_the_published_ones_byte_for_byte():
    assert rendered(TOY, "definition", "up") == (
        "Definition: Say the opposite\nPositive example 1-\ninput: hot\noutput: cold\nPositive example 2-\n"
        "input: big?\noutput: small.\nNow complete the following example-\ninput: up\noutput: "
    )
    assert rendered(TOY, "none", "up") == "input: up\noutput: "
    assert rendered(TOY, "tk-instruct", " up ") == (
        "Definition: Say the opposite.\n\n Positive Example 1 -\nInput: hot.\n Output: cold.\n\n Positive Example 2 -\n"
        "Input: big?\n Output: small.\n\nNow complete the following example -\nInput: up.\nOutput: "
    )
    assert rendered(TOY, "tk-instruct", "up!", 0).endswith("Input: up!\nOutput: ")
    assert rendered(TOY, "definition", "up", 9).count("Positive example") == 3


@pytest.mark.parametrize("text", ["{{ input }}", "{% raw %}x", "{# no comment #}", "a {b} c"])
def test_what_looks_like_a_template_is_text(text):
    odd = Definition("task1", "x", text, ())
    assert rendered(odd, "definition", "up").startswith(f"Definition: {text}\n")


@pytest.mark.parametrize(("count", "sizes"), [(120, (10, 10, 100)), (2000, (1890, 10, 100)), (119, (119, 119, 119))])
def test_the_published_splits(count, sizes):
    splits = split_instances(count)
    assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == sizes
    if count >= 120:
        assert [*splits["test"], *splits["validation"], *splits["train"]] == list(range(count))


def test_one_of_several_outputs_depends_on_seed_task_and_place_alone():
    outputs = ("one", "two", "three")
    chosen = [chosen_output(outputs, 42, "task1", place) for place in range(60)]
    assert set(chosen) == set(outputs)
    assert chosen == [chosen_output(outputs, 42, "task1", place) for place in range(60)]
    assert chosen != [chosen_output(outputs, 43, "task1", place) for place in range(60)]
    assert [row["output"] for row in rows_of(TOY, "test", 42)] == chosen[:60] + [
        chosen_output(outputs, 42, "task1", place) for place in range(60, 100)
    ]


def test_what_stands_solved_in_the_prompt_is_no_instance():
    shown = Definition("task1", "x", "Do", (("in 3 ", "one"),), instances=TOY.instances)
    inputs = [row["input"] for split in ("train", "validation", "test") for row in rows_of(shown, split, 0)]
    assert "in 3" not in inputs
    assert len(inputs) == 129


def test_labels_are_scored_by_matching_and_texts_by_overlap():
    metrics = {
        category: as_task(Definition("task1", category, "Do", ()), {"test": "x.jsonl"}, encoding="none").metrics[0]
        for category in ("Word Analogy", "title generation")
    }
    assert metrics == {"Word Analogy": "exact_match_superni", "title generation": "rouge_l"}
    assert as_task(TOY, {"test": "x.jsonl"}, encoding="none").references == "references"


def official(folder, name="task7_x", **changed):
    told = {
        "Definition": ["Do it."], "Categories": ["Title Generation", "other"], "Negative Examples": [],
        "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}],
        "Instances": [{"id": "1", "input": "q", "output": ["r", "s"]}], **changed,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(told))


def test_the_official_layout(tmp_path):
    assert not is_suite_folder(tmp_path)
    official(tmp_path)
    official(tmp_path, "task6_y", Definition="Undo it.", Instances=[{"input": "q", "output": "r"}])
    assert is_suite_folder(tmp_path)
    first, second = read_folder(tmp_path)
    assert (first.name, first.text, first.instances) == ("task6_y", "Undo it.", (("q", ("r",)),))
    assert (second.category, second.positive, second.instances) == (
        "Title Generation", (("a", "b"),), (("q", ("r", "s")),),
    )  # fmt: skip


def test_the_layout_with_files(tmp_path):
    told = {"task": "task1", "category": "x", "definition": "Do", "positive_examples": [{"input": "a", "output": "b"}]}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(told) + "\n")
    with pytest.raises(MultituneError, match="The task 'task1' has no rows"):
        read_folder(tmp_path)
    (tmp_path / "task1").mkdir()
    (tmp_path / "task1/test.jsonl").write_text('{"input": "q", "output": "r"}\n')
    (one,) = read_folder(tmp_path)
    assert list(one.files) == ["test"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"Definition": []}, "has no 'Definition'"),
        ({"Categories": None}, "has no 'Categories'"),
        ({"Instances": []}, "has no 'Instances'"),
        ({"Instances": [{"input": "q"}]}, "Instance 0 has no input or no output"),
        ({"Instances": [{"input": "q", "output": []}]}, "Instance 0 has no input or no output"),
        ({"Positive Examples": [{"input": "q"}]}, "A solved example has no input"),
    ],
)
def test_what_a_task_lacks_is_told(tmp_path, changed, said):
    official(tmp_path, **changed)
    with pytest.raises(MultituneError, match=said) as error:
        read_folder(tmp_path)
    assert "task7_x.json" in str(error.value)


def test_what_is_no_suite_is_told(tmp_path):
    with pytest.raises(MultituneError, match="holds no tasks of Super-NaturalInstructions"):
        read_folder(tmp_path)
    (tmp_path / "task1.json").write_text("{")
    with pytest.raises(MultituneError, match="This is no JSON"):
        read_folder(tmp_path)
    (tmp_path / "tasks.jsonl").write_text('{"task": "../up", "category": "x", "definition": "y"}')
    with pytest.raises(MultituneError, match="is no name of a folder"):
        read_folder(tmp_path)
