"""Merges that look at rows: coefficients that are learned, and averages by what the models do on their own rows.

The base is written with the heads and the tokenizer of the merge to be, by the engine, which also checks the models
against each other; it is loaded once, gets the weights that were found, and is saved as any model.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.recipes import fingerprint
from multitune.recipes.schema import Recipe
from multitune.weights.config import MergeConfig, MergedModel
from multitune.weights.learned.step_config import (
    AdaMergingSettings,
    AtlasSettings,
    FisherSettings,
    RegMeanSettings,
    RowSettings,
    learned_settings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.models.loading import Backbone
    from multitune.tasks.task import Task
    from multitune.weights.learned.learning import Learned
    from multitune.weights.learned.table_tasks import TaskRows

logger = logging.getLogger("multitune.recipes")

LEARNED_FILE = "coefficients.json"

MOST_TOLD = 10
"""Parts into which steps without epochs are divided, so that people see them go by."""


def merge_by_rows(
    config: MergeConfig, names: Sequence[str], tasks: list[Task], recipe: Recipe, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge folders by a method that looks at validation rows, and write the model.

    Args:
        config: with folders for names.
        names: of the models, in their order, for people.
        tasks: resolved, whose validation rows are looked at.
        recipe: for the base and the folder of the data.
        out: of the model.

    Returns:
        Facts for the artifact, and what is kept of the coefficients (``coefficients.json``).
    """
    from multitune.models.loading import load_saved
    from multitune.recipes.merging import merge_with_heads

    started = time.monotonic()
    settings = learned_settings(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(".learning-*"):  # of a killed attempt
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".learning-") as temporary:
        start = Path(temporary) / "model"
        bare = tuple(MergedModel(model=each.model) for each in config.models)
        nothing = {"method": "task_arithmetic", "models": bare, "parameters": {"weight": 0.0}, "dtype": None}
        report = merge_with_heads(config.model_copy(update=nothing), start, recipe.base, recipe.tasks)
        backbone = load_saved(start)
        rows = _rows(backbone, tasks, settings, recipe, config.seed)
        if isinstance(settings, AtlasSettings | AdaMergingSettings):
            told = _learned(backbone, start, config, settings, rows)
        else:
            told = _averaged(backbone, config, settings, rows)
        _write(backbone, start, config.dtype, out)
    told = {
        "method": config.method,
        "models": list(names),
        "rows": {one.table.task: len(one.numbers_R) for one in rows},
    } | told
    facts = {
        "seconds": round(time.monotonic() - started, 2),
        "tensors": report.tensors,
        "bytes_written": sum(file.stat().st_size for file in out.glob("*.safetensors")),
        "left_out": report.left_out,
    }
    return facts, told


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(backbone: Backbone, tasks: list[Task], settings: RowSettings, recipe: Recipe, seed: int) -> list[TaskRows]:
    """Return some validation rows of every task that the model can answer, in a random order."""
    import torch

    from multitune.mixing.tokens import tokenise
    from multitune.models.positions import usable_positions
    from multitune.recipes.node import with_heads
    from multitune.weights.learned.table_tasks import TaskRows

    if backbone.form == "encoder":
        tasks = with_heads(backbone, tasks)
    longest = min(settings.max_length, usable_positions(backbone.model) or settings.max_length)
    found = []
    for task in tasks:
        table = tokenise(
            task,
            "validation",
            backbone.tokenizer,
            backbone.form,
            recipe.folder,
            max_length=longest,
            cache=fingerprint.cache_folder() / "tokens",
        )
        order_R = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        found.append(TaskRows(table, order_R[: settings.rows]))
    if not found:
        raise MultituneError(
            "The merged model answers none of the tasks whose validation rows it should learn from.",
            "tasks",
            "Name tasks that the merged models were trained on.",
        )
    return found


def _of_model(folder: Path, rows: list[TaskRows]) -> list[TaskRows]:
    """Return the rows of the tasks that a model was trained on; of all where it does not say, or of none of them."""
    from multitune.models.loading import description_of

    own = {task["name"] for task in description_of(folder).get("tasks", ())}
    return [one for one in rows if one.table.task in own] or rows


# -- learned coefficients ----------------------------------------------------------------------------------------------


def _learned(
    backbone: Backbone,
    start: Path,
    config: MergeConfig,
    settings: AtlasSettings | AdaMergingSettings,
    rows: list[TaskRows],
) -> dict[str, Any]:
    """Learn coefficients and put the composed weights into the backbone; return what was learned."""
    from multitune.weights.learned.composition import composed
    from multitune.weights.learned.module_vectors import module_tensors, module_vector

    base = module_tensors(backbone.model, start)
    vectors = [module_vector(backbone.model, start, Path(each.model)) for each in config.models]
    by, partitions = "tensor", 1
    if isinstance(settings, AtlasSettings):
        by, partitions = settings.blocks, settings.partitions
    elif settings.wise == "task":
        by = "all"
    composition = composed(backbone.model, vectors, by, partitions, seed=config.seed, base=base)  # type: ignore[arg-type]
    if isinstance(settings, AtlasSettings):
        learned = _atlas(backbone, composition, settings, rows, config.seed)
    else:
        learned = _adamerging(backbone, composition, settings, rows, config.seed)
    learned.fold_into(backbone.model)
    kept = f"epoch {learned.epoch}" if learned.epoch else "the start"
    logger.info("  %d coefficients, of %s", composition.parameters, kept)
    return {
        "coefficients": composition.parameters,
        "epoch": learned.epoch,
        "scores": learned.scores,
        "losses": learned.losses,
        "blocks": _blocks(_by_model(learned), composition.blocks.shapes),
    }


def _by_model(learned: Learned) -> dict[str, list[list[float]]]:
    partitions = learned.composition.blocks.partitions
    return {
        label: [values[i : i + partitions] for i in range(0, len(values), partitions)]
        for label, values in learned.table().items()
    }


def _atlas(backbone: Backbone, composition: Any, settings: AtlasSettings, rows: list[TaskRows], seed: int) -> Learned:
    from multitune.weights.learned.config import LearningConfig
    from multitune.weights.learned.learning import learn_coefficients
    from multitune.weights.learned.table_tasks import minus_mean_loss, supervised_task

    parts = [_parted(one, settings.pick) for one in rows]
    batch = settings.batch_size
    least = settings.least_batches
    tasks = [supervised_task(backbone, one, batch_size=batch, least_batches=least, seed=seed) for _, one in parts]
    score = minus_mean_loss(backbone, [picks for picks, _ in parts], batch)
    told = settings.model_dump(include=set(LearningConfig.model_fields))
    return learn_coefficients(
        backbone.model, composition, tasks, LearningConfig(**told), evaluate=score, progress=_say_epoch
    )


def _parted(rows: TaskRows, pick: float) -> tuple[TaskRows, TaskRows]:
    """Return the rows that choose the epoch, and those that coefficients are learned from."""
    count = len(rows.numbers_R)
    picks = max(1, round(pick * count))
    if picks >= count:
        raise MultituneError(
            f"{count} validation rows of '{rows.table.task}' cannot both teach and choose.",
            f"task {rows.table.task}",
            "Give the task at least two validation rows, and a smaller pick.",
        )
    return replace(rows, numbers_R=rows.numbers_R[:picks]), replace(rows, numbers_R=rows.numbers_R[picks:])


def _adamerging(
    backbone: Backbone, composition: Any, settings: AdaMergingSettings, rows: list[TaskRows], seed: int
) -> Learned:
    from multitune.weights.learned.config import SETTINGS
    from multitune.weights.learned.learning import learn_coefficients
    from multitune.weights.learned.table_tasks import unsupervised_task

    parts = next(count for count in range(MOST_TOLD, 0, -1) if settings.steps % count == 0)
    tasks = [
        unsupervised_task(backbone, one, batch_size=settings.batch_size, batches=settings.steps // parts, seed=seed)
        for one in rows
    ]
    told = {"learning_rate": settings.learning_rate, "init": settings.init, "epochs": parts}
    config = SETTINGS["adamerging"].model_copy(update=told)
    return learn_coefficients(backbone.model, composition, tasks, config, progress=_say_epoch)


def _say_epoch(done: int, of: int) -> None:
    logger.info("  epoch %d of %d", done, of)


def _blocks(table: Mapping[str, Sequence[Sequence[float]]], shapes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every block: its label, its values by model, and, where it is one tensor, where that stands.

    Args:
        table: label of a block -> for every model its values.
        shapes: of the tensors by name.
    """
    from multitune.models.architecture import architecture_index

    places = architecture_index({name: tuple(shape) for name, shape in shapes.items()})
    found = []
    for label, values in table.items():
        place = places.get(label)
        layer, category = (place.layer, place.category) if place else (None, None)
        found.append({"block": label, "layer": layer, "category": category, "values": [list(one) for one in values]})
    return found


# -- averages ----------------------------------------------------------------------------------------------------------


def _averaged(
    backbone: Backbone, config: MergeConfig, settings: FisherSettings | RegMeanSettings, rows: list[TaskRows]
) -> dict[str, Any]:
    """Average the models by what they do on rows of their own tasks, and put the result into the backbone."""
    from multitune.weights.learned.fisher import FisherAverage
    from multitune.weights.learned.regmean import RegMeanAverage

    average: Any
    if isinstance(settings, FisherSettings):
        average, measure = FisherAverage(floor=settings.floor), _fisher_of
    else:
        average, measure = RegMeanAverage(settings.alpha), _grams_of
    measured = []
    for each in config.models:
        folder = Path(each.model)
        own = _whole(folder)
        seen = _of_model(folder, rows)
        logger.info("  %s on %s", folder.parent.name, ", ".join(one.table.task for one in seen))
        state = {name: p.detach() for name, p in own.model.named_parameters() if _is_merged(own, name)}
        found = measure(own, seen, settings.batch_size, config.seed)
        if isinstance(settings, FisherSettings):
            average.add(state, found, learned_settings(config, each.parameters).weight)
        else:
            average.add(state, found)
        measured.append([one.table.task for one in seen])
        del own, state, found
    parameters = dict(backbone.model.named_parameters())
    for name, tensor in average.result().items():
        parameters[name].data = tensor.to(parameters[name])
    told: dict[str, Any] = {"measured_on": measured}
    if isinstance(average, FisherAverage):
        shares = {name: [[one / sum(means)] for one in means] for name, means in average.mean_weights.items()}
        told |= {"told": "share of the weight", "blocks": _blocks(shares, {n: parameters[n].shape for n in shares})}
    return told


def _whole(folder: Path) -> Backbone:
    """Return a model with its adapter, if it is one, added in."""
    from multitune.models.heads import MultiTaskEncoder
    from multitune.models.loading import load_saved, merged_model

    backbone = load_saved(folder)
    if not (folder / "adapter_config.json").is_file():
        return backbone
    whole = merged_model(backbone)
    if isinstance(backbone.model, MultiTaskEncoder):
        backbone.model.encoder = whole
        return backbone
    return replace(backbone, model=whole)


def _is_merged(backbone: Backbone, name: str) -> bool:
    """Whether a parameter is of the model itself, not of an encoder's heads."""
    return backbone.form != "encoder" or name.startswith("encoder.")


def _fisher_of(backbone: Backbone, rows: list[TaskRows], batch_size: int, seed: int) -> dict[str, Tensor]:
    from multitune.weights.learned.fisher import diagonal_fisher
    from multitune.weights.learned.table_tasks import predictions

    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(_is_merged(backbone, name))
    batches = [(one.table, drawn_B) for one in rows for drawn_B in one.numbers_R.split(batch_size)]

    def logits(forward: Any, batch: Any) -> Tensor:
        return predictions(backbone, batch[0], forward, batch[1])[0]

    return diagonal_fisher(backbone.model, batches, logits, labels="sampled", seed=seed)


def _grams_of(backbone: Backbone, rows: list[TaskRows], batch_size: int, seed: int) -> dict[str, Tensor]:
    from multitune.weights.learned.regmean import gram_matrices
    from multitune.weights.learned.table_tasks import batches_of_one_length, predictions

    batches = [(one.table, drawn_B) for one in rows for drawn_B in batches_of_one_length(one, batch_size)]
    return gram_matrices(backbone.model, batches, lambda model, batch: predictions(backbone, batch[0], model, batch[1]))


# -- the model ---------------------------------------------------------------------------------------------------------


def _write(backbone: Backbone, start: Path, dtype: str | None, out: Path) -> None:
    """Save the backbone in the base's type, or the one asked for, under the description of ``start``."""
    import torch

    from multitune.models.heads import MultiTaskEncoder
    from multitune.models.loading import DESCRIPTION_FILE, save_backbone
    from multitune.weights.checkpoints import FLOATS, Checkpoint

    stored = dtype or next(FLOATS[told] for told in Checkpoint.open(start).dtypes.values() if told in FLOATS)
    carrier = backbone.model.encoder if isinstance(backbone.model, MultiTaskEncoder) else backbone.model
    carrier.to(getattr(torch, stored))
    save_backbone(backbone, out, merged=False)
    if (start / DESCRIPTION_FILE).is_file():
        shutil.copyfile(start / DESCRIPTION_FILE, out / DESCRIPTION_FILE)
    else:
        (out / DESCRIPTION_FILE).unlink()
