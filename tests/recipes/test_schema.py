"""The published JSON schema is current and agrees with what is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multitune.recipes.schema import json_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "recipe.schema.json"


def test_the_published_schema_is_current():
    """Write it anew with: multitune schema > docs/recipe.schema.json"""
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("key", ["name", "seed", "model", "tasks", "score", "steps"])
def test_every_key_of_a_recipe_is_described(key):
    assert key in json_schema()["properties"]


def test_a_task_is_named_by_its_key():
    task = json_schema()["$defs"]["Task"]
    assert "name" not in task["properties"]
    assert "name" not in task.get("required", [])
