"""The model card that every trained model carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from multitune.recipes.graph import TrainNode
from multitune.recipes.schema import Recipe


def model_card(recipe: Recipe, node: TrainNode, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a README with metadata for the hub: data, recipe, scores, and how to load the model.

    Args:
        recipe: of the run.
        node: the step that made the model.
        facts: of its training: steps, seconds, trainable_parameters, rows per task.
        rows: its scores, as on the Scoreboard; may be empty before scoring.
    """
    metadata = {
        "base_model": recipe.model.name,
        "library_name": "transformers" if _is_whole(node) else "peft",
        "tags": ["multitune", "multi-task", node.step.adapt.method],
    }
    tasks = "\n".join(f"| {name} | {facts['rows'][name]:,} |" for name in node.tasks)
    # what the user wrote, defaults left out; exclude_defaults would drop a policy or method that equals its default
    recipe_text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}: {node.name}",
        f"`{recipe.model.name}` adapted to {len(node.tasks)} task{'s' * (len(node.tasks) > 1)} at once with multitune: "
        f"method {node.step.adapt.method}, {facts['trainable_parameters']:,} parameters trained, {facts['steps']:,} "
        f"steps, {facts['seconds']:.0f} seconds, seed {recipe.seed}.",
        "The licences of the base model and of the data apply; this card does not widen them.",
        f"## Load\n\n```python\n{_loading(recipe, node)}\n```",
        f"## Data\n\n| task | training rows |\n|---|---|\n{tasks}",
        *_scores(rows),
        f"## Recipe\n\n```yaml\n{recipe_text}```",
    ]
    return "\n\n".join(parts) + "\n"


def _is_whole(node: TrainNode) -> bool:
    return node.step.adapt.method == "full" or node.step.export == "merged"


def _loading(recipe: Recipe, node: TrainNode) -> str:
    if _is_whole(node):
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")  # AutoModel for an encoder, '
            "AutoModelForSeq2SeqLM for an encoder-decoder\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{recipe.model.name}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")'
    )


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        f"| {row['task']} | {row['split']} | {row['metric']} | {row['value']:.3f} "
        f"| {row['low']:.3f} to {row['high']:.3f} | {row['n']:,} |"
        for row in rows
    ]
    head = "| task | split | metric | value | 95 % interval | examples |\n|---|---|---|---|---|---|"
    return [f"## Scores\n\n{head}\n" + "\n".join(lines)]
