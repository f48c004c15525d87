"""The page's table by level: from a recipe's tags and the answers that a run kept."""

from __future__ import annotations

import pytest
import yaml

from multitune.reporting.levels import level_tables
from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from tests.reporting.conftest import HELD_OUT, TRAINED


def tagged(run, categories):
    path = run / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for task, category in categories.items():
        recipe["tasks"][task]["tags"] = {"category": category}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return run


def test_a_run_without_categories_has_no_table(sample_run):
    assert level_tables(read_run(sample_run())) == []


def test_every_level_beside_the_base(sample_run, tmp_path):
    categories = dict.fromkeys(TRAINED, "labels") | dict.fromkeys(HELD_OUT, "letters") | {"copy_letters": "labels"}
    run = tagged(sample_run(alone=False), categories)
    (table,) = level_tables(read_run(run))
    assert table.node == "joint"
    assert [(after.level, after.category, after.tasks) for _, _, after in table.lines] == [
        ("held-out examples", "", 6), ("held-out examples", "labels", 6),
        ("held-out tasks", "", 1), ("held-out tasks", "labels", 1),
        ("held-out categories", "", 2), ("held-out categories", "letters", 2),
    ]  # fmt: skip
    rows = {(row["step"], row["task"], row["metric"]): row["value"] for row in read_run(run).scores}
    _, before, after = table.lines[0]
    for step, line in (("base", before), ("joint", after)):
        assert line.value == pytest.approx(sum(rows[step, task, "accuracy"] for task in TRAINED) / 6)
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "How far it generalises" in page
    assert page.count("held-out categories") == 1
