"""What must be known of the whole model before a tensor can be merged: ranks over all tensors, LiNeS' norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import fsum
from typing import Any

from multitune.errors import MultituneError
from multitune.weights.arrangement import Job
from multitune.weights.config import MergeConfig
from multitune.weights.methods import MASKS, METHODS, statistics_of
from multitune.weights.methods.layer import Layer
from multitune.weights.selection import Map
from multitune.weights.streaming import Stream, partial_sums


def layer_of(job: Job, config: MergeConfig) -> Layer:
    return Layer(job.name, job.shape, seed=config.seed, compat=config.compat)


def global_statistics(
    jobs: Sequence[Job], config: MergeConfig, open_stream: Callable[[Job], Stream], each: Map
) -> dict[str, Any]:
    """Return the statistics of every tensor where magnitudes are ranked over the whole model; else {}.

    Raises:
        MultituneError: parameters that are not the same for all tensors.
    """
    if not jobs or jobs[0].parameters.get("granularity") != "global":
        return {}
    told = jobs[0].parameters
    other = next((job for job in jobs if _ranking(job) != _ranking(jobs[0])), None)
    if other is not None:
        raise MultituneError(
            "Magnitudes are ranked over the whole model, and the parameters differ from tensor to tensor.",
            f"{jobs[0].name} and {other.name}",
            "Give numbers in place of schedules and rules, or granularity: layer.",
        )
    layers = [layer_of(job, config) for job in jobs]
    found = statistics_of(config.method, [open_stream(job) for job in jobs], told, layers, each)
    return {job.name: own for job, own in zip(jobs, found, strict=True)}


def _ranking(job: Job) -> dict[str, Any]:
    """Return the parameters that decide what is kept: factors of what is kept may differ from tensor to tensor."""
    return {name: value for name, value in job.parameters.items() if name not in ("weight", "lambda")}


def norm_alpha(
    jobs: Sequence[Job],
    config: MergeConfig,
    open_stream: Callable[[Job], Stream],
    statistics: dict[str, Any],
    each: Map,
) -> float:
    """Return LiNeS' alpha by the norm rule: (1/N) |sum of the task vectors|_1 / |merged task vector|_1.

    Both norms run over all scalars of the model; of a method that thins task vectors, the thinned ones are summed, as
    in the authors' code. 1 where the merged vector is zero.
    """
    sums: list[list[float]] = [[] for _ in jobs]
    merged: list[list[float]] = [[] for _ in jobs]
    mask = MASKS.get(config.method)

    def add(number: int) -> None:
        job = jobs[number]
        stream, layer = open_stream(job), layer_of(job, config)
        own = statistics.get(job.name)
        own = own or statistics_of(config.method, [stream], job.parameters, [layer])[0]
        statistics[job.name] = own  # the merge needs them once more
        for chunk in stream:
            piece = replace(layer, start=chunk.start, statistics=own)
            # a method on weights has them in place of deltas: |sum (theta_t - theta_0)|
            shift = chunk.anchor - chunk.base
            deltas = chunk.deltas.sub(shift)
            kept = mask(deltas, job.parameters, piece) if mask else deltas
            sums[number] += partial_sums(kept.sum(0).abs_(), stream.unit)
            result = METHODS[config.method](chunk.base, chunk.deltas, job.parameters, piece)
            merged[number] += partial_sums(result.sub(chunk.anchor).abs_(), stream.unit)

    for _ in each(add, range(len(jobs))):
        pass
    whole = fsum(part for own in merged for part in own)
    count = len(jobs[0].models) if jobs else 1
    return fsum(part for own in sums for part in own) / whole / count if whole else 1.0
