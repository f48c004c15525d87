"""Task vectors of model folders, memory-mapped, and learned coefficients as a merge that the engine streams."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from multitune.errors import MultituneError
from multitune.weights.checkpoints import Checkpoint
from multitune.weights.config import MergeConfig, MergedModel
from multitune.weights.learned.learning import Learned
from multitune.weights.learned.vectors import FactoredVector, TaskVector, difference


def mapped_tensors(folder: Path) -> dict[str, Tensor]:
    """Return a whole model's tensors by name, memory-mapped: the ``base`` of ``composed``. They must not be written to.

    Raises:
        MultituneError: what ``Checkpoint.open`` raises.
    """
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


def vector_of_folder(base: Path, folder: Path, leave_out: Sequence[str] = ()) -> TaskVector:
    """Return the task vector of a fine-tuned model or LoRA adapter; no tensor is read before it is asked for.

    Args:
        base: folder of the pretrained model.
        folder: a whole model's (its difference from the base), or an adapter's (kept as factors).
        leave_out: shell patterns of tensors that are no part of the vector, such as a head: ``("classifier.*",)``.

    Raises:
        MultituneError: tensors missing on one side, other shapes, an adapter that brings tensors whole, and what
            ``Checkpoint.open`` raises.
    """
    tuned = Checkpoint.open(folder)

    def wanted(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in leave_out)

    if tuned.adapter is None:
        return difference(
            {name: tensor for name, tensor in mapped_tensors(base).items() if wanted(name)},
            {name: tuned.tensor(name) for name in tuned.names if wanted(name)},
        )
    if whole := [name for name in tuned.replaced if wanted(name)]:
        raise MultituneError(
            f"The adapter brings the whole tensor '{whole[0]}', which has no factors.",
            str(folder),
            "Leave it out by name, or merge the adapter into its base first.",
        )
    return FactoredVector({name: tuned.factored(name) for name in tuned.targets if wanted(name)})


def as_merge(learned: Learned, base: Path, folders: Sequence[Path]) -> MergeConfig:
    """Return the learned composition as task arithmetic with a coefficient per model and tensor, for ``weights.merge``.

    The engine then writes the folded model shard by shard, however large it is.

    Args:
        base: folder of the pretrained model.
        folders: of the models whose vectors were composed, in their order.

    Raises:
        MultituneError: more than one partition, which no merge by tensors can say, or another number of folders.
    """
    blocks = learned.composition.blocks
    if blocks.partitions > 1 or len(folders) != len(learned.lam_NC):
        raise MultituneError(
            f"{blocks.partitions} partitions of {len(learned.lam_NC)} vectors are no merge of {len(folders)} folders.",
            "as_merge",
            "Give every vector's folder; fold partitioned coefficients into the loaded model instead.",
        )
    models = []
    for number, folder in enumerate(folders):
        own = learned.composition.names[number]
        row = learned.lam_NC[number]
        weights: dict[str, float | tuple[float, ...]] = {
            name: float(row[blocks.first_column[name]]) for name in blocks.shapes if name in own
        }
        models.append(MergedModel(model=str(folder), parameters={"weight": {**weights, "default": 0.0}}))
    return MergeConfig(method="task_arithmetic", base=str(base), models=tuple(models))
