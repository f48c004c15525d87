"""`multitune schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON schema of recipes (point an editor at it to get completion in recipe.yaml)."""
    from multitune.cli.output import answer_json
    from multitune.recipes.schema import json_schema

    answer_json(json_schema())
