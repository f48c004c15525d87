"""Mistakes that no single key shows, each told before anything is loaded."""

from __future__ import annotations

import pytest
import yaml

from multitune.errors import MultituneErrors
from multitune.recipes.loading import load_recipe


def train_step(**settings):
    return {"do": "train", "training": {"steps": 1}, **settings}


@pytest.mark.parametrize(
    ("change", "what", "key"),
    [
        (lambda r: r["steps"].update(more=train_step(model="joint")), "leaves an adapter", "steps.more.model"),
        (
            lambda r: r.update(model={"name": "tiny", "quantize": "4bit"}, steps={"a": {"adapt": "full"}}),
            "Quantised weights cannot train",
            "steps.a.adapt",
        ),
        (
            lambda r: r.update(model={"name": "tiny", "quantize": "4bit"}, steps={"a": {"adapt": "fish"}}),
            "Quantised weights cannot train",
            "steps.a.adapt",
        ),
        (
            lambda r: r["steps"]["joint"].update(adapt="delta_lora"),
            "Delta-LoRA moves the weights themselves",
            "steps.joint.adapt",
        ),
        (
            lambda r: r["steps"]["joint"].update(adapt="ept", export="merged"),
            "An adapter of type ept cannot be added into the weights.",
            "steps.joint.export",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer={"method": "gem", "earlier": ["sgin"]}),
            "'sgin' is not in this step. Did you mean 'sign'",
            "balancer.earlier",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer={"method": "gem", "earlier": ["sign", "echo"]}),
            "GEM needs a new task",
            "balancer.earlier",
        ),
        (
            lambda r: r["steps"]["joint"].update(
                adapt={"method": "half", "resample": "epoch"}, training={"steps": 1, "balancer": "pcgrad"}
            ),
            "Another half at every epoch cannot train with pcgrad",
            "steps.joint.adapt.resample",
        ),
        (lambda r: r["steps"]["joint"]["training"].update(report_to=["wandb"]), "wandb is not installed", "report_to"),
        (
            lambda r: (
                r["tasks"]["sign"].update(weight=2.0)
                or r["steps"]["joint"]["training"].update(aggregation="sample_mean")
            ),
            "The weight of 'sign' has no effect with the aggregation sample_mean",
            "tasks.sign.weight",
        ),
        (
            lambda r: (
                r["steps"]["joint"].update(adapt="prefix_tuning")
                or r["steps"]["joint"]["training"].update(gradient_checkpointing=True)
            ),
            "prefix_tuning gives the layers a cache",
            "steps.joint.training.gradient_checkpointing",
        ),
        (
            lambda r: r["steps"].update(dev={"do": "score", "split": "validation"}),
            "None of the tasks of 'dev' has validation rows",
            "steps.dev",
        ),
        (
            lambda r: r.update(score={"shots": 2}),
            "Task 'mark' has no validation rows to show as demonstrations",
            "score.shots",
        ),
        (
            lambda r: r["steps"].update(few={"do": "score", "curve": [0, 2], "tasks": ["mark"]}),
            "Task 'mark' has no validation rows to show as demonstrations",
            "steps.few",
        ),
        (
            lambda r: r.update(model={"name": "tiny", "form": "encoder"}, score={"shots": 2}) or r["tasks"].pop("echo"),
            "An encoder, which answers by its heads, reads no demonstrations",
            "score.shots",
        ),
        (lambda r: r["steps"].update(dev={"do": "score", "tasks": ["sgin"]}), "Did you mean 'sign'", "steps.dev.tasks"),
        (lambda r: r["steps"]["joint"].update(tasks=["sign", "sign"]), "named twice", "steps.joint.tasks.1"),
        (
            lambda r: r.update(model={"name": "tiny", "form": "encoder"}) or r["tasks"]["echo"].update(kind="generate"),
            "cannot answer tasks of kind generate",
            "tasks.echo.kind",
        ),
        (
            lambda r: r["tasks"]["mark"].update(test={"generator": "synthetic:copy_leters"}),
            "Did you mean 'copy_letters'",
            "tasks.mark.test.generator",
        ),
        (
            lambda r: r["tasks"]["mark"].update(test={"generator": "rows"}),
            "names no generator",
            "tasks.mark.test.generator",
        ),
        (lambda r: r["tasks"]["mark"].update(test={"hub": "org/data"}), "has several splits", "tasks.mark.test"),
        (lambda r: r["tasks"]["sign"].update(metrics="rouge_l"), "not label", "tasks.sign.metrics"),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer="coba"),
            "The balancer coba watches validation rows, and there are none for sign, echo",
            "steps.joint.training.balancer",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer="cobra"),
            "cobra",
            "steps.joint.training.balancer",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer={"window": 3}),
            "'balancer' does not say its method",
            "steps.joint.training.balancer",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(task_weights={"sign": 0, "echo": 0}),
            "The weight of sign, echo is 0, and nothing else is trained here",
            "steps.joint.training.task_weights",
        ),
        (
            lambda r: r["tasks"]["echo"].update(weight=0) or r["steps"].update(alone=train_step(tasks="each")),
            "The weight of echo is 0, and each task is trained alone here",
            "steps.alone.training",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(balancer={"method": "coba", "taw": 3}),
            "Did you mean 'tau'",
            "steps.joint.training.balancer",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(
                focal={"level": "task", "alpha": {"ehco": 2}}, aggregation="task_sample_mean"
            ),
            "Did you mean 'echo'",
            "steps.joint.training.focal.alpha.ehco",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(eval_steps=2),
            "Eval_steps evaluates validation rows, and there are none for sign, echo",
            "steps.joint.training.eval_steps",
        ),
        (
            lambda r: r["steps"]["joint"].update(mixture={"policy": "weights", "weights": {"sign": 1}}),
            "'echo' is missing",
            "steps.joint.mixture",
        ),
    ],
)
def test_one_mistake_is_told_with_its_key(recipe, write, monkeypatch, change, what, key):
    monkeypatch.setattr("multitune.recipes.checks.find_spec", lambda name: None)
    change(recipe)
    with pytest.raises(MultituneErrors) as refused:
        load_recipe(write(recipe))
    (error,) = refused.value.errors
    assert what in error.what
    assert key in error.where and "recipe.yaml:" in error.where
    assert error.mend.endswith(".")


def test_mistakes_in_a_suite_are_told_with_the_line_of_the_suite(recipe, write, data):
    (data / "suite.yaml").write_text(
        "tasks:\n  sign:\n    train: data/sign/train.jsonl\n    kindd: label\n", encoding="utf-8"
    )
    recipe["tasks"] = "suite.yaml"
    with pytest.raises(MultituneErrors) as refused:
        load_recipe(write(recipe))
    (error,) = refused.value.errors
    assert error.where == f"{data / 'suite.yaml'}:4, tasks.sign.kindd"


def test_overrides_reach_into_a_suite(recipe, write, data):
    (data / "suite.yaml").write_text(yaml.safe_dump({"tasks": recipe["tasks"]}), encoding="utf-8")
    recipe["tasks"] = "suite.yaml"
    loaded = load_recipe(write(recipe), ["tasks.sign.weight=2", "tasks.sign.train.rows=3"])
    assert (loaded.tasks["sign"].weight, loaded.tasks["sign"].train.rows) == (2.0, 3)
    with pytest.raises(MultituneErrors, match=r"--set tasks\.sign\.weight=heavy"):
        load_recipe(write(recipe), ["tasks.sign.weight=heavy"])
