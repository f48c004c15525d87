"""promptsource's files: input and target from one template, choices of a row's own, nothing but the row in reach."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.answer_choices import row_choices
from multitune.tasks.bad_rows import BadRow
from multitune.tasks.prompting import BadRows, prompted_examples, resolve
from multitune.tasks.promptsource import read_templates, split_template
from multitune.tasks.task import Task
from multitune.tasks.templates import compile_template

FILE = """
dataset: nli
templates:
  1a: !Template
    answer_choices: Yes ||| Maybe ||| No
    id: 1a
    jinja: '{{premise}} Does it follow that "{{hypothesis}}"? {{ answer_choices | join(", ") }}?
      |||

      {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: follows
    reference: ''
  2b: !Template
    answer_choices: null
    id: 2b
    jinja: "{% if label == 0 %}Write what follows from: {{premise}} ||| {{hypothesis}}{% endif %}"
    metadata: !TemplateMetadata {original_task: false}
    name: write it
  3c: !Template
    answer_choices: null
    id: 3c
    jinja: "{{ choice([premise, hypothesis]) }} ||| x"
    name: by chance
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "templates.yaml").write_text(FILE)
    return tmp_path / "templates.yaml"


def rendered(pair, fields):
    return tuple(compile_template(text, "here")(fields) for text in pair)


def test_templates_with_their_metadata_and_those_that_cannot_run(file):
    found, (refused,) = read_templates(file)
    follows, write = found
    assert refused.name == "by chance" and "choice" in refused.reason
    assert (follows.name, follows.choices_in_prompt, follows.languages, follows.metrics) == (
        "follows", True, ("en",), ("Accuracy",),
    )  # fmt: skip
    assert follows.original_task and not write.original_task
    assert follows.target == "{{ answer_choices[label] }}" and follows.prompt.endswith('join(", ") }}?')
    assert [(one.name) for one in read_templates(file, ["write it"])[0]] == ["write it"]


def test_a_task_with_choices_of_every_prompt(file, tmp_path):
    (follows, _), _ = read_templates(file, ["follows", "write it"])
    rows = [
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        {"premise": "a", "hypothesis": "b", "label": 2},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="nli", kind="choose", choices="answer_choices", test="rows.jsonl",
        prompt=(follows.prompt, "{{ premise }} {{ hypothesis }}"), target="{{ answer_choices[label] }}",
        answer_choices=(follows.answer_choices, "true ||| open ||| false"), prompt_names=("follows", "plain"),
    )  # fmt: skip
    found = list(prompted_examples(resolve(task, tmp_path), "test", tmp_path, templates="all"))
    assert [(one.target, one.choices, one.label) for one in found] == [
        ("Yes", ("Yes", "Maybe", "No"), 0), ("true", ("true", "open", "false"), 0),
        ("No", ("Yes", "Maybe", "No"), 2), ("false", ("true", "open", "false"), 2),
    ]  # fmt: skip
    assert found[0].prompt.endswith("Yes, Maybe, No?")
    assert "answer_choices" not in found[0].example.fields


def test_a_condition_around_the_separator_leaves_rows_out_and_counts_them(file, tmp_path):
    ((write,), _) = read_templates(file, ["write it"])
    rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in (0, 1, 0)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="w", kind="generate", test="rows.jsonl", prompt=write.prompt, target=write.target, on_bad_row="skip"
    )
    bad = BadRows()
    found = list(prompted_examples(task, "test", tmp_path, bad_rows=bad))
    assert [(one.prompt, one.target) for one in found] == [("Write what follows from: p", "h")] * 2
    assert bad.count == 1


def test_empty_and_several_targets_are_bad_rows(tmp_path):
    pair = split_template("{% for one in answers %}{{ q }} ||| {{ one }}{% endfor %}", "here")
    assert rendered(pair, {"q": "Q", "answers": ["a"]}) == ("Q", "a")
    with pytest.raises(BadRow, match="2 targets"):
        rendered(pair, {"q": "Q", "answers": ["a", "b"]})
    rows = [{"q": "one", "a": ""}, {"q": "two", "a": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt, target = split_template("{{ q }} ||| {{ a }}", "here")
    task = Task(name="w", kind="generate", train="rows.jsonl", prompt=prompt, target=target, on_bad_row="skip")
    bad = BadRows()
    assert [one.target for one in prompted_examples(task, "train", tmp_path, bad_rows=bad)] == ["b"]
    assert bad.count == 1


@given(
    st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=20), st.sampled_from(["|||", "a ||| b", "||| |||"])
)
def test_fields_with_bars_come_through_whole(text, bars):
    fields = {"q": text + bars, "a": bars + "x" + text, "yes": True}
    for template in (
        "{{ q }} ||| {{ a }}",
        "{% if yes %}{{ q }} ||| {{ a }}{% endif %}",
        "{% set b = a %}{{ q }} ||| {{ b }}",
    ):
        prompt, target = rendered(split_template(template, "here"), fields)
        assert (prompt.strip(), target.strip()) == (fields["q"].strip(), fields["a"].strip())
    task = Task(name="t", prompt="{{ q }}", target="{{ a }}", answer_choices="{{ q }} ||| {{ a }}")
    assert row_choices(task)(fields, 0)["answer_choices"] == [fields["q"].strip(), fields["a"].strip()]


def test_choices_that_an_expression_joins_are_cut_apart():
    task = Task(name="t", prompt="{{ q }}", target="{{ q }}", answer_choices='{{ options | join(" ||| ") }}')
    assert row_choices(task)({"options": ["one", "two ||| three"]}, 0)["answer_choices"] == ["one", "two ||| three"]
    with pytest.raises(BadRow, match="empty"):
        row_choices(task)({"options": ["one", ""]}, 0)


@pytest.mark.parametrize("text", ["{{ x.__class__ }} ||| y", "{{ x }} ||| {{ ''.__class__.__mro__ }}"])
def test_nothing_but_the_row_is_in_reach(text):
    with pytest.raises(MultituneError):
        for part in split_template(text, "here"):
            compile_template(part, "here")({"x": "a"})


def test_a_python_object_of_yaml_is_not_made(tmp_path):
    (tmp_path / "t.yaml").write_text("templates: {a: !!python/object/apply:os.system [ls]}")
    with pytest.raises(MultituneError, match="not promptsource"):
        read_templates(tmp_path / "t.yaml")
    (tmp_path / "t.yaml").write_text("templates: {a: !Other {jinja: x}}")
    with pytest.raises(MultituneError, match="not promptsource"):
        read_templates(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("templates: {}", "no templates"), ("templates: {a: {name: b}}", "no text"),
        ("templates: {a: {jinja: 'no separator'}}", "no template that can be used"),
        ("templates: {a: {name: x, jinja: 'q ||| a'}, b: {name: x, jinja: 'q ||| a'}}", "Two templates"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_they_should_be(tmp_path, text, what):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(MultituneError, match=what):
        read_templates(tmp_path / "t.yaml")


def test_a_name_that_the_file_lacks(file):
    with pytest.raises(MultituneError, match="follows"):
        read_templates(file, ["folows"])
    with pytest.raises(MultituneError, match="no file"):
        read_templates(file.parent / "none.yaml")


def test_a_training_row_names_its_prompt(tmp_path):
    rows = [{"q": "a", "a": "x", "by": {"prompt": "two"}}, {"q": "b", "a": "x", "by": {"prompt": "one"}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="t", kind="generate", train="rows.jsonl", prompt=("1 {{ q }}", "2 {{ q }}"), target="{{ a }}",
        prompt_names=("one", "two"), prompt_field="{{ by.prompt }}",
    )  # fmt: skip
    assert [one.prompt for one in prompted_examples(resolve(task, tmp_path), "train", tmp_path)] == ["2 a", "1 b"]
    assert [one.prompt for one in prompted_examples(task, "train", tmp_path, templates="first")] == ["1 a", "1 b"]
    rows[0]["by"]["prompt"] = "three"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MultituneError, match="none of the task's"):
        list(prompted_examples(task, "train", tmp_path))
