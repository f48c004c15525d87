"""The model card that every trained model carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multitune.adaptation.methods import WITHOUT_ADAPTER
from multitune.models.location import PROMPTS_FOLDER, holds_delta
from multitune.recipes.cost import told
from multitune.recipes.graph import EstimatorNode, MergeNode, TrainNode
from multitune.recipes.schema import Recipe

ANSWERING = """```bash
multitune predict FOLDER rows.jsonl --task {task} --out answers.jsonl
```

```python
from pathlib import Path

from multitune.models.loading import load_saved
from multitune.scoring.predict import predict

backbone = load_saved(Path("FOLDER"))
task = next(task for task in backbone.tasks if task.name == {task})
rows = [...]  # mappings with the fields that the task's prompt names: print(task.prompt)
for answer in predict(backbone, task, rows):
    print(answer.prediction)
```"""


def model_card(
    recipe: Recipe, node: TrainNode, folder: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Return a README with metadata for the hub: data, recipe, scores, and how to load the model.

    Args:
        recipe: of the run.
        node: the step that made the model.
        folder: where the model lies.
        facts: of its training: steps, seconds, trainable_parameters, rows per task, cost.
        rows: its scores, as on the Scoreboard; may be empty before scoring.
    """
    metadata = {
        "base_model": recipe.base.name,
        "library_name": "multitune" if node.step.export == "delta" else "transformers" if _is_whole(node) else "peft",
        "tags": ["multitune", "multi-task", node.adaptation.method],
    }
    tasks = "\n".join(f"| {name} | {facts['rows'][name]:,} |" for name in node.tasks)
    # what the user wrote, defaults left out; exclude_defaults would drop a policy or method that equals its default
    recipe_text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}: {node.name}",
        f"`{recipe.base.name}` adapted to {len(node.tasks)} task{'s' * (len(node.tasks) > 1)} at once with multitune: "
        f"method {node.adaptation.method}, {facts['trainable_parameters']:,} parameters trained, {facts['steps']:,} "
        f"steps, {facts['seconds']:.0f} seconds, seed {recipe.seed}.",
        "The licences of the base model and of the data apply; this card does not widen them.",
        f"## Load\n\n```python\n{loading_code(folder, recipe.base.name, 'FOLDER')}\n```",
        *_prompts(folder),
        f"## Answer new rows\n\n{ANSWERING.format(task=json.dumps(node.tasks[0]))}",
        f"## Data\n\n| task | training rows |\n|---|---|\n{tasks}",
        *_costs(facts.get("cost")),
        *_scores(rows),
        f"## Recipe\n\n```yaml\n{recipe_text}```",
    ]
    return "\n\n".join(parts) + "\n"


def _costs(cost: Mapping[str, Any] | None) -> list[str]:
    """Return the cost record as a section; none for a model that was trained before records were kept."""
    if not cost:
        return []
    one = told("", cost)
    lines = {
        "numbers that trained": f"{one.trainable} ({one.share} of the base's)",
        "on disk": one.disk,
        "peak memory while training": one.memory,
        "time per step": one.step,
        "tokens read per second, adapter beside the weights": one.unmerged,
        "tokens read per second, merged or without adapter": one.merged,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items() if value)
    return [f"## Cost\n\n| | |\n|---|---|\n{rows}"]


def merge_card(
    recipe: Recipe, node: MergeNode, folder: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Return the README of a merged model; arguments as for ``model_card``."""
    metadata = {
        "base_model": recipe.base.name,
        "library_name": "transformers",
        "tags": ["multitune", "merge", facts["method"]],
    }
    settings = node.step.model_dump(mode="json", exclude_defaults=True, exclude={"do"})
    settings |= {f"chosen {key}": value for key, value in facts.get("chosen", {}).items()}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}: {node.name}",
        f"{len(facts['models'])} models tuned from `{recipe.base.name}`, merged by {facts['method']} with multitune "
        f"in {facts['seconds']:.0f} seconds: {', '.join(facts['models'])}.",
        "The licences of the base model, of the merged models and of their data apply; this card does not widen them.",
        f"## Load\n\n```python\n{loading_code(folder, recipe.base.name, 'FOLDER')}\n```",
        *_scores(rows),
        f"## Merge\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```",
    ]
    return "\n\n".join(parts) + "\n"


ESTIMATOR_ANSWERING = """```bash
multitune predict FOLDER rows.csv --task {task} --out answers.jsonl
```

```python
from pathlib import Path

from multitune.tabular.task_model import load_table_model

model = load_table_model(Path("FOLDER"))
model.estimator  # of multitune.tabular, fitted; model.columns are what it reads
```"""


def estimator_card(
    recipe: Recipe, node: EstimatorNode, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    """Return the README of a fitted estimator; arguments as for ``model_card``."""
    metadata = {"library_name": "multitune", "tags": ["multitune", "tabular", node.step.estimator]}
    tasks = "\n".join(f"| {name} | {facts['rows'][name]:,} |" for name in node.tasks)
    outliers = list(facts.get("outlier_scores", {}).items())[:20]
    settings = recipe.model_dump(mode="json", exclude_unset=True)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {recipe.name}: {node.name}",
        f"{node.step.estimator} fitted to {sum(facts['rows'].values()):,} rows of {len(node.tasks)} "
        f"task{'s' * (len(node.tasks) > 1)} with multitune in {facts['seconds']:.1f} seconds, seed {recipe.seed}.",
        "The licence of the data applies; this card does not widen it.",
        f"## Answer new rows\n\n{ESTIMATOR_ANSWERING.format(task=json.dumps(node.tasks[0]))}",
        f"## Data\n\n| task | training rows |\n|---|---|\n{tasks}\n\nColumns: {', '.join(facts['features'])}.",
        *_scores(rows),
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```",
    ]
    if len(outliers) > 1:
        lines = "\n".join(f"| {name} | {score:.3f} |" for name, score in outliers)
        told = "From 0 for a task in the middle to 1; the drawing is `theta.svg`."
        table = f"| task | outlier score |\n|---|---|\n{lines}"
        parts.insert(-1, f"## Tasks that belong least\n\n{told}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _is_whole(node: TrainNode) -> bool:
    return node.adaptation.method in WITHOUT_ADAPTER or node.step.export == "merged"


def loading_code(folder: Path, base: str, place: str) -> str:
    """Return the lines of Python that load a saved model with the ecosystem's own classes.

    Args:
        folder: the saved model; its files say what it is.
        base: name of the model that was adapted.
        place: how the code names the folder.
    """
    quoted = json.dumps(place)
    if (folder / "table.json").is_file():
        return (
            "from pathlib import Path\n\nfrom multitune.tabular.task_model import load_table_model\n\n"
            f"model = load_table_model(Path({quoted}))  # .estimator is fitted, .columns are what it reads"
        )
    if (folder / "fusion.json").is_file():
        return (
            "from pathlib import Path\n\nfrom multitune.decoding.fusion_file import load_fusion\n\n"
            f'backbone = load_fusion(Path({quoted}) / "fusion.json")  # .model generates as any transformers model'
        )
    if (folder / "heads.json").is_file() or holds_delta(folder):
        told = ".model, .tokenizer and one head per task" if (folder / "heads.json").is_file() else ".model, .tokenizer"
        return (
            "from pathlib import Path\n\nfrom multitune.models.loading import load_saved\n\n"
            f"backbone = load_saved(Path({quoted}))  # {told}"
        )
    if (folder / "adapter_config.json").is_file():
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        auto = "AutoModelForSeq2SeqLM" if adapter.get("task_type") == "SEQ_2_SEQ_LM" else "AutoModelForCausalLM"
        embedded = base == "tiny"  # its weights lie inside the package
        origin = "tiny_path()" if embedded else json.dumps(adapter.get("base_model_name_or_path") or base)
        return (
            ("from multitune.models.tiny import tiny_path\n" if embedded else "")
            + f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
            f"base = {auto}.from_pretrained({origin})\n"
            f"model = PeftModel.from_pretrained(base, {quoted})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({quoted})"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = str((config.get("architectures") or [""])[0])
    auto = "AutoModelForSeq2SeqLM" if "ConditionalGeneration" in architecture else "AutoModelForCausalLM"
    return (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f"model = {auto}.from_pretrained({quoted})\ntokenizer = AutoTokenizer.from_pretrained({quoted})"
    )


def _prompts(folder: Path) -> list[str]:
    """Return what a model says of the prompts of tasks that lie beside it."""
    names = sorted(place.name for place in (folder / PROMPTS_FOLDER).glob("*"))
    if not names:
        return []
    places = ", ".join(f"`{PROMPTS_FOLDER}/{name}`" for name in names)
    return [
        f"It was trained behind a soft prompt for each task, which lie in {places} as adapters of peft: put one on the "
        "model with `PeftModel.from_pretrained` for rows of its task, and leave it off for everything else. multitune "
        "does both by the task's name."
    ]


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from multitune.scoring.scoreboard import as_chosen

    if not rows:
        return []
    lines = [
        f"| {row['task']} | {row['split']} | {row['metric']} | {row['value']:.3f} "
        f"| {row['low']:.3f} to {row['high']:.3f} | {row['n']:,} |"
        for row in as_chosen(rows)
    ]
    head = "| task | split | metric | value | 95 % interval | examples |\n|---|---|---|---|---|---|"
    return [f"## Scores\n\n{head}\n" + "\n".join(lines)]
