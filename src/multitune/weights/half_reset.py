"""Half-Reset (arXiv 2404.18466, pilot study): half of a tuned model's blocks get their old weights back.

theta = theta0 + M (theta_ft - theta0), where M is 1 on the half that half fine-tuning would train and 0 on the other:
every tensor is one or the other, untouched. Embeddings, head and final norm stay tuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from multitune.adaptation.half_config import HalfConfig
from multitune.adaptation.half_selection import frozen_half
from multitune.errors import MultituneError
from multitune.models.architecture import architecture_index

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.weights.arrangement import Job


def half_reset(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], config: HalfConfig, *, seed: int, round: int = 1
) -> dict[str, Tensor]:
    """Return the tuned state dict with half of its blocks as they were before.

    Args:
        base: theta0; tensors of the same names.
        tuned: theta_ft.
        config: the fraction that stays tuned, and how the half is drawn.
        seed, round: of the draw.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tuned.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    reset = frozen_half(architecture_index(shapes), sizes, config, seed=seed, round=round)
    return {name: base[name] if name in reset else tensor for name, tensor in tuned.items()}


def take_halves(jobs: Sequence[Job], seed: int) -> list[Job]:
    """Let every tensor of a merge be read from the base or from the one model, as the draw says.

    Args:
        jobs: of the method ``half_reset``, with the base as ``anchor``.
        seed: of the draw.

    Raises:
        MultituneError: parameters that are not the same for all tensors.
    """
    told = jobs[0].parameters
    if any(job.parameters != told for job in jobs):
        raise MultituneError(
            "The draw of half_reset is one for the whole model: its parameters cannot differ from tensor to tensor.",
            "parameters",
            "Give numbers in place of schedules and rules.",
        )
    config = HalfConfig(fraction=told["fraction"], granularity=told["granularity"], balance=told["balance"])
    drawn = [job for job in jobs if job.merged]
    sizes = {job.name: math.prod(job.shape) for job in drawn}
    places = {job.name: job.place for job in drawn}
    reset = frozen_half(places, sizes, config, seed=seed, round=int(told["round"]))
    return [replace(job, models=(job.anchor,)) if job.name in reset and job.anchor else job for job in jobs]
