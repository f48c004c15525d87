"""Steps with an estimator: tables in a recipe, fitted, scored and asked as any other task."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.recipes.predicting import predict_files
from multitune.recipes.scoring import score_model
from multitune.reporting.report import write_report
from multitune.scoring.predictions import read_predictions
from multitune.scoring.score import ScoreConfig
from multitune.scoring.scoreboard import Scoreboard

BOOSTED = {"estimator": "rmtgb", "estimator_options": {"n_estimators": [5, 0, 5], "learning_rate": 0.5}}
NETWORK = {
    "estimator": "multitab",
    "estimator_options": {
        "embed_dim": 4,
        "heads": 2,
        "ff_dim": 8,
        "tower": [8],
        "epochs": 2,
        "initialisation": "torch",
    },
}


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def sales(path: Path) -> np.ndarray:
    with path.open() as file:
        return np.array([float(row["sales"]) for row in csv.DictReader(file)])


def store(name: str, rows: int, seed: int, slope: float) -> list[dict]:
    """Days of a store: sales go up with the area, more on sunny days; some areas are not known."""
    random = np.random.default_rng(seed)
    found = []
    for day in range(rows):
        area, sky = float(random.integers(1, 20)), str(random.choice(["sun", "rain"]))
        sales = round(slope * area + 5 * (sky == "sun"), 3)
        known = "" if day % 10 == 9 else area
        found.append({"store": name, "area": known, "sky": sky, "sales": sales, "busy": "yes" if sales > 20 else "no"})
    return found


@pytest.fixture
def tables(recipe, data):
    """A recipe without a model: sales of two stores, each in files of its own, and a step that learns both."""
    for name, seed, slope in (("north", 0, 2.0), ("south", 1, 3.0)):
        write_rows(data / f"{name}.csv", store(name, 60, seed, slope))
        write_rows(data / f"{name}_test.csv", store(name, 20, seed + 10, slope))
    write_rows(data / "both.csv", store("north", 60, 0, 2.0) + store("south", 60, 1, 3.0))
    write_rows(data / "both_test.csv", store("north", 20, 10, 2.0) + store("south", 20, 11, 3.0))
    recipe.clear()
    recipe |= {
        "name": "stores",
        "tasks": {
            name: {"train": f"{name}.csv", "test": f"{name}_test.csv", "kind": "regress", "target": "{{ sales }}"}
            for name in ("north", "south")
        },
        "steps": {"boosted": {**BOOSTED, "features": ["area", "sky"]}},
    }
    return recipe


@pytest.fixture
def of_both(tables):
    """The same rows in one file: sales and busyness of a day, two targets of one table."""
    both = {"train": "both.csv", "test": "both_test.csv"}
    tables["tasks"] = {
        "sales": {**both, "kind": "regress", "target": "{{ sales }}", "metrics": ["mse"]},
        "busy": {**both, "kind": "label", "target": '{{ row["busy"] }}', "metrics": ["accuracy"]},
    }
    tables["steps"] = {"network": NETWORK}
    return tables


@pytest.fixture
def go(recipe, write, tmp_path):
    def go(*overrides):
        return list(run(load_recipe(write(recipe), overrides), tmp_path / "run").done)

    return go


def scores(folder: Path) -> dict[tuple[str, str, str], float]:
    rows = Scoreboard.load(folder / "scoreboard.parquet").rows
    return {(row["step"], row["task"], row["metric"]): row["value"] for row in rows}


def told(write, recipe) -> list[str]:
    """Every mistake that checking a recipe tells: key by key, then by its rows."""
    with pytest.raises(MultituneError) as caught:
        plan(load_recipe(write(recipe)))
    errors = caught.value.errors if isinstance(caught.value, MultituneErrors) else [caught.value]
    return [f"{error.where.rpartition(', ')[2]}: {error.what}" for error in errors]


def test_tasks_of_the_recipe_are_the_boosters_tasks_and_the_mean_stands_before(tables, go, tmp_path, data):
    assert go() == ["base@score", "boosted", "boosted@score"]
    found = scores(tmp_path / "run")
    assert {(step, task) for step, task, _ in found} == {
        (s, t) for s in ("base", "boosted") for t in ("north", "south")
    }
    for name in ("north", "south"):
        train, test = sales(data / f"{name}.csv"), sales(data / f"{name}_test.csv")
        assert found["base", name, "mse"] == pytest.approx(np.mean((test - train.mean()) ** 2))
        assert found["boosted", name, "mse"] < found["base", name, "mse"]
        assert found["base", name, "pearson"] == 0
    (first, *_) = read_predictions(tmp_path / "run" / "steps" / "boosted" / "predictions" / "north.jsonl")
    assert first.prompt.startswith("area: ")
    assert "sky: " in first.prompt and "sales" not in first.prompt
    card = (tmp_path / "run" / "steps" / "boosted" / "model" / "README.md").read_text()
    assert "| north | 60 |" in card and "| north | test | mse |" in card and "outlier score" in card
    assert (tmp_path / "run" / "steps" / "boosted" / "model" / "theta.svg").read_text().startswith("<svg")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "none; before: the mean" in page and "load_table_model" in page


def test_what_stands_is_kept_and_a_changed_option_or_row_is_learned_anew(tables, go, data):
    go()
    assert go() == []
    assert go("steps.boosted.estimator_options.max_depth=1") == ["boosted", "boosted@score"]
    write_rows(data / "north.csv", store("north", 50, 0, 2.0))
    assert "boosted" in go("steps.boosted.estimator_options.max_depth=1")


def test_a_column_of_one_file_may_hold_the_boosters_tasks(of_both, go, tmp_path):
    of_both["steps"] = {
        "boosted": {
            "estimator": "rmtgb",
            "estimator_options": {**BOOSTED["estimator_options"], "task_column": "store"},
            "tasks": ["sales"],
        }
    }
    assert go() == ["base@score", "boosted", "boosted@score"]
    facts = json.loads((tmp_path / "run" / "steps" / "boosted" / "artifact.json").read_text())
    assert set(facts["outlier_scores"]) == {"north", "south"}
    assert facts["features"] == ["store", "area", "sky"]  # and no target of another task
    assert facts["rows"] == {"sales": 120}


def test_several_targets_of_one_file_are_one_network(of_both, go, tmp_path):
    assert go() == ["base@score", "network", "network@score"]
    found = scores(tmp_path / "run")
    assert ("network", "sales", "mse") in found
    assert 0 <= found["network", "busy", "accuracy"] <= 1
    facts = json.loads((tmp_path / "run" / "steps" / "network" / "artifact.json").read_text())
    assert facts["features"] == ["store", "area", "sky"]
    from multitune.tabular.task_model import load_table_model

    model = load_table_model(tmp_path / "run" / "steps" / "network" / "model")
    assert [column.numeric for column in model.columns] == [False, True, False]
    assert [target.name for target in model.estimator.targets_] == ["sales", "busy"]


def test_classes_stay_those_of_their_task(of_both, go, tmp_path):
    of_both["steps"] = {"boosted": {**BOOSTED, "tasks": ["busy"]}}
    go()
    assert scores(tmp_path / "run")["boosted", "busy", "accuracy"] > 0.9
    answers = read_predictions(tmp_path / "run" / "steps" / "boosted" / "predictions" / "busy.jsonl")
    assert {answer.prediction for answer in answers} == {"yes", "no"}


def test_each_task_alone_and_held_out_ones_by_what_is_shared(tables, go, tmp_path, caplog):
    tables["tasks"]["south"] |= {"held_out": True}
    del tables["tasks"]["south"]["train"]
    shared = {**BOOSTED["estimator_options"], "unseen_task": "shared"}
    tables["steps"] = {
        "alone": {**tables["steps"]["boosted"], "tasks": "each"},
        "known": tables["steps"]["boosted"],
        "open": {**tables["steps"]["boosted"], "estimator_options": shared},
    }
    with pytest.warns(UserWarning, match="not there at fit"):
        go()
    found = {(step, task) for step, task, _ in scores(tmp_path / "run")}
    assert found >= {("base", "south"), ("alone.north", "north"), ("known", "north"), ("open", "south")}
    assert ("known", "south") not in found and ("alone.north", "south") not in found
    assert "has not learned south" in caplog.text


def test_a_saved_estimator_is_asked_and_scored_outside_the_run(tables, go, tmp_path, data, write):
    go()
    model = tmp_path / "run" / "steps" / "boosted" / "model"
    answers = list(predict_files(str(model), [data / "south_test.csv"], tasks=None, task="south", rows=5))
    kept = read_predictions(model.parent / "predictions" / "south.jsonl")
    assert [answer.prediction for answer in answers] == [one.prediction for one in kept[:5]]
    found = {
        score.task: score.metrics["mse"]
        for score in score_model(str(model), write(tables), out=None, seed=0, config=ScoreConfig())
    }
    assert found["north"] == scores(tmp_path / "run")["boosted", "north", "mse"]
    with pytest.raises(MultituneError, match="several tasks"):
        list(predict_files(str(model), [data / "south_test.csv"], tasks=None, task=None, rows=None))
    (data / "odd.csv").write_text("area,sky\nwide,sun\n")
    with pytest.raises(MultituneError, match="'wide' is no number"):
        list(predict_files(str(model), [data / "odd.csv"], tasks=None, task="south", rows=None))
    (data / "few.csv").write_text("area,sk\n1,sun\n")
    with pytest.raises(MultituneError, match=r"no column 'sky'\. Did you mean 'sk'"):
        list(predict_files(str(model), [data / "few.csv"], tasks=None, task="south", rows=None))


def test_a_damaged_estimator_is_refused(tables, go, tmp_path):
    from multitune.tabular.task_model import load_table_model

    go()
    model = tmp_path / "run" / "steps" / "boosted" / "model"
    file = model / "table.json"
    facts = json.loads(file.read_text())
    for change, what in (({"format": 2}, "newer version"), ({"class": "Path"}, "does not describe")):
        file.write_text(json.dumps(facts | change))
        with pytest.raises(MultituneError, match=what):
            load_table_model(model)


def test_the_plan_tells_rows_columns_and_answers(of_both, write):
    of_both["tasks"]["busy"]["weight"] = 0.5
    (node,) = plan(load_recipe(write(of_both))).tables
    assert (node.numeric, node.categorical) == (["area"], ["store", "sky"])
    assert [(task.task, task.target, task.rows) for task in node.tasks] == [
        ("sales", "sales", 120),
        ("busy", "busy", 120),
    ]
    assert node.tasks[1].answers.startswith("2 classes: no ")


def test_keys_that_have_no_meaning_are_named_with_all_the_others(tables, write):
    tables["steps"] = {
        "a": {**BOOSTED, "adapt": "lora", "training": {"epochs": 1}, "los": 1},
        "b": {"estimator": "multitap"},
        "c": {"estimator_options": {}},
    }
    assert told(write, tables) == [
        "steps.a.adapt: The key 'adapt' is for language models and has no meaning for an estimator.",
        "steps.a.training: The key 'training' is for language models and has no meaning for an estimator.",
        "steps.a.los: There is no key 'los' here.",
        "steps.b.estimator: 'estimator' cannot be 'multitap'. Did you mean 'multitab'?",
        "steps.c: The key 'estimator' is missing.",
    ]


def test_mistakes_between_keys_are_told_at_once(tables, write):
    odd = {"embed_dim": 6, "target_types": {}}
    tables["tasks"]["north"]["target"] = "sales"
    tables["tasks"]["south"] |= {"kind": "generate", "weight": 0}
    tables["tasks"]["east"] = {"train": "both.csv", "kind": "label"}
    tables["steps"] = {
        "a": {"estimator": "rmtgb", "estimator_options": {"learnin_rate": 0.1, "max_depth": 0, "task_column": "store"}},
        "b": {"estimator": "multitab", "features": ["area", "area"], "estimator_options": odd},
        "c": {"estimator": "multitab", "tasks": ["noth"]},
        "d": {"do": "score", "model": "e"},
    }  # fmt: skip
    assert told(write, tables) == [
        "tasks.north.target: The task 'north' has the target 'sales'.",
        "tasks.south.kind: The task 'south' is of kind generate, and an estimator learns classes or numbers.",
        "tasks.south.weight: The weight of south is 0, and an estimator would learn nothing of it.",
        "tasks.east.target: The task 'east' has no target column.",
        "steps.a.estimator_options.learnin_rate: RMTGBRegressor has no argument 'learnin_rate'. "
        "Did you mean 'learning_rate'?",
        "steps.a.estimator_options.max_depth: max_depth is 0.",
        "steps.a.estimator_options.task_column: The tasks are told by the column 'store' and by the recipe, which has "
        "3 in this step.",
        "steps.b.features.1: The column 'area' is named twice.",
        "steps.b.estimator_options.target_types: target_types is not set here: the kinds of the tasks say it.",
        "steps.b.estimator_options.embed_dim: embed_dim 6 is no multiple of the 4 heads.",
        "steps.c.tasks.0: There is no task 'noth'. Did you mean 'north'?",
        "steps.d.model: There is no model 'e'.",
    ]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda r: r["tasks"]["north"].update(target="{{ sale }}"),
            "field 'sale' that no row has. Did you mean 'sales'",
        ),
        (lambda r: r["steps"]["boosted"].update(features=["area", "skys"]), "no column 'skys'. Did you mean 'sky'"),
        (lambda r: r["tasks"]["north"].update(kind="label"), "not both at once: north is of kind label"),
        (lambda r: r["tasks"]["north"].update(train="gaps.csv"), "has 1 bad row:"),
        (lambda r: r["tasks"]["north"].update(train="infinite.csv"), "'area' holds an infinite number"),
        (lambda r: r["tasks"]["north"].update(train="empty.csv"), "'north' has no rows"),
        (lambda r: r["steps"]["boosted"].update(features=["sales"]), "is a target of this step"),
        (lambda r: r["steps"].update(joint={}), "'model' is missing"),
    ],
)
def test_rows_that_cannot_be_learned_are_told_before_the_run(tables, write, data, change, what):
    (data / "gaps.csv").write_text("area,sky,sales\n1,sun,3\n2,sun,nan\n")
    (data / "infinite.csv").write_text("area,sky,sales\n1,sun,3\ninf,sun,4\n")
    (data / "empty.csv").write_text("area,sky,sales\n")
    change(tables)
    (found,) = told(write, tables)
    assert what in found


def test_one_class_is_refused_where_there_is_nothing_to_tell_apart(of_both, write, data):
    write_rows(data / "both.csv", [{**row, "busy": "yes"} for row in store("north", 20, 0, 2.0)])
    of_both["tasks"]["busy"]["choices"] = ["yes", "no"]
    assert told(write, of_both) == ["tasks.busy.train: All training rows of busy are of one class, 'yes'."]


def test_rows_without_a_label_are_left_out_of_their_task_alone(of_both, go, data, tmp_path):
    rows = store("north", 40, 0, 2.0)
    rows[3]["busy"] = ""
    write_rows(data / "both.csv", rows)
    of_both["tasks"]["busy"] |= {"on_bad_row": "skip", "choices": ["yes", "no"]}
    go()
    facts = json.loads((tmp_path / "run" / "steps" / "network" / "artifact.json").read_text())
    assert facts["rows"] == {"sales": 40, "busy": 39}


def test_a_sweep_over_an_option_fits_each_once(tables, write, tmp_path):
    from multitune.recipes.loading import load
    from multitune.recipes.sweep_plan import plan_sweep

    tables["sweep"] = {"steps.boosted.estimator_options.max_depth": [1, 2]}
    sweep = load(write(tables))
    assert len(plan_sweep(sweep).trained.tables) == 2
    assert len(run(sweep, tmp_path / "run").done) == 5  # the baseline is scored once
