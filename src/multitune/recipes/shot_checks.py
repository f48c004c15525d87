"""What a recipe's keys say of demonstrations: whether there are any, and whether they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multitune.errors import MultituneError
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import Recipe
from multitune.scoring.in_context.demonstrations import demonstration_split
from multitune.scoring.score import ScoreConfig, scored_split


def check_shots(
    config: ScoreConfig, named: Sequence[str], recipe: Recipe, document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    """Yield what is wrong with demonstrations before the questions of some tasks.

    Args:
        config: how they are scored.
        named: the tasks.
        recipe: of the tasks and the model.
        document: the file, for lines.
        key: where the config stands.
    """
    if not config.shots:
        return
    if recipe.model is None or recipe.model.form == "encoder":
        who = "A recipe of estimators alone" if recipe.model is None else "An encoder, which answers by its heads,"
        yield MultituneError(
            f"{who} reads no demonstrations.",
            document.where((*key, "shots")),
            "Take shots out, or take a causal or encoder-decoder model.",
        )
        return
    for name in named:
        task = recipe.tasks.get(name)
        if task is None or scored_split(task, config.split) is None:
            continue
        split = demonstration_split(task, config.demonstrations)
        if task.source(split) is None:
            yield MultituneError(
                f"Task '{name}' has no {split} rows to show as demonstrations.",
                document.where((*key, "shots")),
                "Give it a train source, name another split in demonstrations.split, or leave it out of the step.",
            )
