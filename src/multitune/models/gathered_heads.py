"""The heads of several encoders beside one: what a merged encoder needs to answer the tasks of all of them.

Weights of encoders are merged; heads are not, for each belongs to a task of its own. Where several encoders have a head
for one task, theirs is the mean, as in a soup of runs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multitune.errors import MultituneError
from multitune.models.heads import HEADS_FILE, WEIGHTS_FILE, Head, described_head


@dataclass(frozen=True)
class _Learned:
    head: Head
    weight: Tensor
    bias: Tensor
    folder: Path


def gather_heads(folders: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Write the heads of all models of ``folders`` that have some into ``out``; return their tasks in order.

    Heads that regress are brought to the scale of the first before the mean is taken.

    Raises:
        MultituneError: two models answer one task with other choices, or pool their states differently.
    """
    learned: dict[str, list[_Learned]] = defaultdict(list)
    pooling: dict[str, Path] = {}
    dropout = 0.0
    for folder in folders:
        if not (folder / HEADS_FILE).is_file():
            continue
        described: dict[str, Any] = json.loads((folder / HEADS_FILE).read_text(encoding="utf-8"))
        dropout = max(dropout, described["dropout"])
        pooling.setdefault(described["pooling"], folder)
        tensors = load_file(folder / WEIGHTS_FILE)
        for head in map(described_head, described["heads"]):
            of_task = _Learned(head, tensors[f"{head.task}/weight"], tensors[f"{head.task}/bias"], folder)
            learned[head.task].append(of_task)
    if not learned:
        return ()
    if len(pooling) > 1:
        where = " and ".join(str(folder) for folder in pooling.values())
        raise MultituneError(
            f"The encoders pool differently: {' and '.join(pooling)}.",
            where,
            "Merge encoders that agree.",
        )
    tensors, heads = {}, []
    for task, found in learned.items():
        first = found[0]
        for other in found[1:]:
            if not first.head.same_task(other.head):
                raise MultituneError(
                    f"Two models have heads for the task '{task}' with other choices.",
                    f"{first.folder} and {other.folder}",
                    "Give the tasks names of their own.",
                )
        scaled = [_at_scale(each, first.head.scale) for each in found]
        tensors[f"{task}/weight"] = torch.stack([weight for weight, _ in scaled]).mean(0)
        tensors[f"{task}/bias"] = torch.stack([bias for _, bias in scaled]).mean(0)
        heads.append(asdict(first.head) | {"outputs": first.head.outputs})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / WEIGHTS_FILE, {"format": "pt"})
    described = {"pooling": next(iter(pooling)), "dropout": dropout, "heads": heads}
    (out / HEADS_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return tuple(learned)


def _at_scale(one: _Learned, scale: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Return a head's weight and bias such that mean + deviation (w x + b) predicts the same in another scale."""
    if one.head.scale is None or scale is None or one.head.scale == scale:
        return one.weight, one.bias
    (mean, deviation), (new_mean, new_deviation) = one.head.scale, scale
    ratio = deviation / new_deviation
    return one.weight * ratio, one.bias * ratio + (mean - new_mean) / new_deviation
