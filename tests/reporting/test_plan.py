"""The plan in a terminal: eighty columns, tasks trained alone together, the loss mask visible."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from multitune.recipes.merge_plan import MergeNodePlan
from multitune.recipes.plan import NodePlan, Plan, TaskInPlan
from multitune.reporting.plan import marked, show_plan


def task(name: str, **changes) -> TaskInPlan:
    settings = {
        "task": name, "rows": 11916, "unique_rows": 11916, "repeats": 1.78, "tokens": 708_123, "loss_share": 0.25,
        "truncated": 50, "dropped": 4, "bad_rows": 0, "estimated": True, "sampling_share": 0.227,
        "effective_share": 0.195,
    }  # fmt: skip
    return TaskInPlan(**(settings | changes))


def node(name: str, *tasks: TaskInPlan, **changes) -> NodePlan:
    settings = {
        "name": name, "model": "tiny", "method": "lora", "steps": 100, "form": "causal", "fill": 0.95,
        "parameters": 1000, "trainable": 10, "memory_bytes": 2**30, "seconds": 90.0,
        "tasks": list(tasks), "warnings": [],
    }  # fmt: skip
    return NodePlan(**(settings | changes))


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=80, record=True)
    show_plan(plan, console)
    return console.export_text()


def test_a_plan_tells_every_number_in_eighty_columns():
    text = shown(Plan("p", [node("joint", task("tweet_offensive"))], {"tweet_offensive": [("rude", True)]}))
    line = next(line for line in text.splitlines() if "tweet_offensive" in line)
    assert line.split() == [
        "tweet_offensive", "11,916", "11,916", "1.78", "~708k", "25%", "~54", "22.7%", "19.5%",
    ]  # fmt: skip
    assert "10 of 1,000 (1.00%)" in text
    assert "1.00 GiB of memory, about 1 min 30 s" in text


def test_tasks_trained_alone_are_one_table():
    nodes = [node(f"alone.{name}", task(name), fill=fill) for name, fill in (("a", 0.9), ("b", 0.8))]
    text = shown(Plan("p", nodes, {}))
    assert "alone: lora on tiny, 2 models of one task each" in text
    assert "200, pack fill 80.0% to 90.0%" in text
    assert "about 3 min 00 s" in text


def test_bad_rows_get_a_column_only_where_there_are_some():
    assert " bad " not in shown(Plan("p", [node("joint", task("a"))], {}))
    assert " bad " in shown(Plan("p", [node("joint", task("a", bad_rows=3))], {}))


def test_heads_have_no_tokens_that_carry_loss():
    plan = Plan(
        "p", [node("joint", task("a"), form="encoder")], {"a": [("[CLS]", False), (" fine", False), (" → good", True)]}
    )
    text = shown(plan)
    assert "carry" not in text.partition("used:")[0]
    assert "95.0% of the rows' padded width filled" in text
    assert text.rstrip().endswith("[CLS] fine → good")


def test_warnings_are_shown_as_they_are():
    text = shown(Plan("p", [node("joint", task("a"), warnings=["a: [bold]most[/bold] rows stay unseen."])], {}))
    assert "warning: a: [bold]most[/bold] rows stay unseen." in text


def test_an_unknown_number_of_trainable_parameters_is_said():
    assert "known only once" in shown(Plan("p", [node("joint", task("a"), trainable=None)], {}))


def test_what_carries_loss_is_marked():
    text = marked([("2 + 2 = ", False), ("4", True)])
    assert text.plain == "2 + 2 = 4"
    assert [(span.start, span.style) for span in text.spans] == [(0, "dim"), (8, "black on green")]


def test_long_examples_lose_their_beginning_and_say_so():
    text = marked([("x", False)] * 200 + [("y", True)])
    assert text.plain.startswith("(41 tokens) ... x")
    assert text.plain.endswith("y")


@pytest.mark.parametrize(("method", "told"), [("atlas", True), ("ties", False)])
def test_learning_is_not_in_the_forecast_of_a_merge(method, told):
    merge = MergeNodePlan("merged", method, 4, 0, 10**9, 10**8, 2.0)
    text = shown(Plan("p", [node("joint", task("a"))], {}, [merge]))
    assert ("what is learned from rows before that" in " ".join(text.split())) == told
