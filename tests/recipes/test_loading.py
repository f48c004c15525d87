"""Every mistake in a recipe is told at once, with line, key, nearest word and mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.loading import load_recipe
from multitune.recipes.run_folder import resolved_text


def mistakes(path, *overrides):
    with pytest.raises(MultituneErrors) as error:
        load_recipe(path, overrides)
    return error.value.errors


def test_a_whole_recipe_loads(recipe, write):
    loaded = load_recipe(write(recipe), ["seed=3", "steps.joint.training.learning_rate=0.5"])
    assert loaded.seed == 3
    assert loaded.steps["joint"].training.learning_rate == 0.5
    assert loaded.training_tasks == ("sign", "echo")


def test_without_steps_there_is_one_train_step(recipe, write):
    del recipe["steps"]
    assert list(load_recipe(write(recipe)).steps) == ["joint"]


@pytest.mark.parametrize(
    ("change", "what", "key"),
    [
        (lambda r: r.update(sed=1), "no key 'sed' here. Did you mean 'seed'", "sed"),
        (lambda r: r["tasks"]["sign"].update(kindd="label"), "'kindd' here. Did you mean 'kind'", "tasks.sign.kindd"),
        (
            lambda r: r["tasks"]["sign"].update(kind="labels"),
            "'kind' cannot be 'labels'. Did you mean 'label'?",
            "tasks.sign.kind",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(learning_rte=1),
            "Did you mean 'learning_rate'",
            "learning_rte",
        ),
        (
            lambda r: r["steps"]["joint"]["training"].update(batch_size="big"),
            "'batch_size' cannot be 'big'",
            "batch_size",
        ),
        (lambda r: r["steps"]["joint"]["training"].update(lr=1), "Did you mean 'learning_rate'", "lr"),
        (lambda r: r["steps"]["joint"]["training"].update(num_train_epochs=1), "Did you mean 'epochs'", "epochs"),
        (lambda r: r["steps"]["joint"]["adapt"].update(rank=4), "Did you mean 'r'", "adapt"),
        (lambda r: r.update(score={"rows": 0}), "'rows' cannot be 0", "score.rows"),
        (lambda r: r["steps"]["joint"]["adapt"].update(lora_alfa=1), "Did you mean 'lora_alpha'", "adapt"),
        (lambda r: r["steps"]["joint"].update(adapt="prompt_tunin"), "Did you mean 'prompt_tuning'", "adapt"),
        (lambda r: r["steps"]["joint"].update(mixture={"policy": "equals"}), "Did you mean 'equal'", "mixture"),
        (lambda r: r["steps"]["joint"].update(do="select"), "not in this version", "steps.joint"),
        (lambda r: r["steps"]["joint"].update(do="trian"), "Did you mean 'train'", "steps.joint"),
        (lambda r: r["steps"]["joint"].update(model="bse"), "no model 'bse'. Did you mean 'base'", "steps.joint.model"),
        (
            lambda r: r["steps"]["joint"].update(tasks=["sing"]),
            "no task 'sing'. Did you mean 'sign'",
            "steps.joint.tasks",
        ),
        (lambda r: r["steps"]["joint"].update(tasks=["mark"]), "'mark' is held out", "steps.joint.tasks"),
        (lambda r: r["tasks"]["sign"].update(train="data/sign/trian.jsonl"), "train.jsonl", "sign.train"),
        (lambda r: r["tasks"]["sign"].update(prompt="{{ text"), "template", "tasks.sign.prompt"),
        (lambda r: r["tasks"]["sign"].update(prompt="{{ text.__class__ }}"), "reach", "tasks.sign.prompt"),
        (lambda r: r["tasks"]["sign"].update(metrics=["acuracy"]), "Did you mean 'accuracy'", "tasks.sign.metrics"),
        (lambda r: r["tasks"]["mark"].pop("test"), "nothing to be scored on", "tasks.mark"),
        (lambda r: r["tasks"]["echo"].pop("train"), "has no train source", "tasks.echo"),
        (lambda r: r["steps"].update(base={}), "cannot be called base", "steps.base"),
        (lambda r: r["steps"]["joint"]["training"].update(task_weights={"ech": 1}), "Did you mean 'echo'", "ech"),
        (lambda r: r["steps"].update(b={"model": "c"}, c={"model": "b"}), "wait for one another", "steps"),
        (lambda r: r.pop("model"), "'model' is missing", "recipe.yaml"),
    ],
)
def test_one_mistake_is_told_with_key_and_mend(recipe, write, change, what, key):
    change(recipe)
    (error,) = mistakes(write(recipe))
    assert what in error.what + error.mend
    assert key in error.where
    assert "recipe.yaml" in error.where
    assert error.mend


def test_mistakes_in_keys_hide_no_others(recipe, write):
    recipe["model"] = {"name": "tiny", "frm": "causal"}
    recipe["tasks"]["echo"]["train"] = "data/missing.jsonl"
    recipe["tasks"]["sign"]["kind"] = "labels"
    recipe["steps"]["joint"] |= {"do": "trian", "training": {"lr": "fast", "batch_size": 0}}
    recipe["steps"]["again"] = {"do": "score", "model": "jont"}
    assert [error.where.rpartition(", ")[2] for error in mistakes(write(recipe))] == [
        "model.frm",
        "tasks.sign.kind",
        "steps.joint",
        "steps.joint.training.batch_size",
        "steps.joint.training.lr",
        "steps.joint.training.learning_rate",
        "tasks.echo.train",
        "steps.again.model",
    ]


def test_nothing_is_told_that_comes_of_another_mistake(recipe, write):
    """What a faulty key would have said is not missed, and a missing key ends the search."""
    recipe["steps"]["joint"]["exprt"] = "merged"
    recipe["steps"]["further"] = {"model": "joint"}
    recipe["tasks"]["mark"]["test"] = {"pth": "data/mark.jsonl"}
    assert [error.where.rpartition(", ")[2] for error in mistakes(write(recipe))] == [
        "tasks.mark.test.pth",
        "steps.joint.exprt",
    ]
    del recipe["model"]
    assert len(mistakes(write(recipe))) == 3


def test_all_mistakes_are_told_at_once_with_their_lines(recipe, write):
    recipe["sed"] = 1
    recipe["tasks"]["sign"]["kindd"] = "label"
    recipe["steps"]["joint"]["training"]["batch_size"] = "big"
    path = write(recipe)
    lines = path.read_text().splitlines()
    found = mistakes(path)
    assert len(found) == 3
    for error, word in zip(sorted(found, key=lambda e: e.what), ("batch_size", "kindd", "sed"), strict=True):
        number = next(i for i, line in enumerate(lines, 1) if line.strip().startswith(word))
        assert f"recipe.yaml:{number}," in error.where


def test_checking_loads_nothing_heavy(recipe, write):
    path = write(recipe)
    code = (
        "import sys; from multitune.recipes.loading import load_recipe; "
        f"load_recipe({str(path)!r}); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'peft', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_suite_file_may_hold_the_tasks(recipe, write, data):
    import yaml

    (data / "suites").mkdir()
    tasks = {"echo": {"train": "../data/echo/train.jsonl", "test": "../data/echo/test.jsonl"}}
    (data / "suites" / "suite.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    recipe["tasks"] = "suites/suite.yaml"
    source = load_recipe(write(recipe)).tasks["echo"].train.path
    assert Path(source).resolve() == data / "data/echo/train.jsonl"


def test_a_missing_recipe_is_told(tmp_path):
    with pytest.raises(MultituneError, match="no file"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_paths_of_tasks_start_at_the_data_folder(recipe, write, data):
    recipe["data_folder"] = "data"
    for task in recipe["tasks"].values():
        for split in ("train", "test"):
            if split in task:
                task[split] = task[split].removeprefix("data/")
    loaded = load_recipe(write(recipe))
    assert loaded.folder == data / "data"
    moved = data / "elsewhere"
    (data / "data").rename(moved)
    with pytest.raises(MultituneError, match="The data folder 'data' does not exist"):
        load_recipe(write(recipe))
    assert load_recipe(write(recipe), [f"data_folder={moved}"]).folder == moved
    (data / "resolved.yaml").write_text(resolved_text(load_recipe(write(recipe), [f"data_folder={moved}"])))
    assert load_recipe(data / "resolved.yaml").tasks["sign"].train.path == str(moved / "sign/train.jsonl")
