"""Runs a system's arms on the same seeds, keeps each finished one, and judges the claims from all of them.

Layout of the folder: ``arms/<scale>/<arm>-seed<k>.json`` for every finished pair, ``work/`` for the one under way,
``result.json`` at the end.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multitune import __version__
from multitune.errors import MultituneError, nearest
from multitune.recipes.fingerprint import digest
from multitune.recipes.run_folder import accelerator, locked, machine, read_finished, versions, write_whole
from multitune.systems.claims import Judgement, Metrics, judge
from multitune.systems.system import Arm, Scale, System

logger = logging.getLogger("multitune.systems")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finished:
    """One arm with one seed, run: its metrics, wall time and the time of this process's threads, in seconds."""

    metrics: Metrics
    seconds: float
    process_seconds: float


def reproduce(
    system: System,
    scale_name: str,
    out: Path,
    *,
    seeds: int | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run what is missing of a reproduction, write ``result.json`` and return it.

    Seeds are 0, 1, ...; all arms of a seed come before the next seed. An interrupted run, given the same folder, goes
    on; more seeds add to what is kept.

    Args:
        scale_name: "small" or "full".
        out: the folder; a path of its own for every system.
        seeds: None runs as many as the scale says.
        command: told in the result.
        progress: called before and after every pair with (what runs, pairs done, pairs in all).

    Raises:
        MultituneError: no such scale, a GPU is needed, the folder cannot be written or is in use.
    """
    scale = scale_of(system, scale_name)
    seeds = scale.seeds if seeds is None else seeds
    pairs = [(arm, seed) for seed in range(seeds) for arm in scale.arms]
    finished: dict[tuple[str, int], Finished] = {}
    with locked(out):
        for done, (arm, seed) in enumerate(pairs):
            if progress is not None:
                progress(f"{arm.name}, seed {seed}", done, len(pairs))
            finished[arm.name, seed] = _finished(system, scale_name, arm, seed, out)
        if progress is not None:
            progress("done", len(pairs), len(pairs))
        result = _result(system, scale_name, seeds, finished, command)
        write_whole(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def scale_of(system: System, name: str) -> Scale:
    """Return a system's reproduction at one scale.

    Raises:
        MultituneError: the system is to come, has no such scale, or the scale needs a GPU and there is none.
    """
    if system.account is None:
        raise MultituneError(
            f"System {system.number} ({system.name}) is to come: nothing of it can be reproduced yet.",
            f"reproduce {system.number}",
            "`multitune systems` lists those that stand.",
        )
    scales = system.account.scales
    if name not in scales:
        raise MultituneError(
            f"System {system.number} ({system.name}) has no scale '{name}'.{nearest(name, scales)}",
            f"--scale {name}",
            f"Choose one of: {', '.join(scales)}.",
        )
    if scales[name].needs_gpu and accelerator() == "none":
        raise MultituneError(
            f"The scale '{name}' of system {system.number} needs a GPU, and this machine has none that torch can use.",
            f"--scale {name}",
            "Run it on a machine with a GPU, or choose --scale small.",
        )
    return scales[name]


def arm_fingerprint(system: System, scale_name: str, arm: Arm, seed: int) -> str:
    """Digest what an arm's metrics depend on: settings, seed, the account's version, this package's and torch's."""
    assert system.account is not None
    return digest(
        {
            "system": system.number,
            "version": system.account.version,
            "scale": scale_name,
            "settings": dict(arm.settings),
            "seed": seed,
            "packages": [__version__, *(versions().get(name) for name in ("torch", "transformers"))],
        }
    )


def kept_path(out: Path, scale_name: str, arm: Arm, seed: int) -> Path:
    """Where a finished pair is kept."""
    return out / "arms" / scale_name / f"{arm.name}-seed{seed}.json"


def keep(path: Path, fingerprint: str, finished: Finished) -> None:
    """Write a finished pair, whole or not at all."""
    facts = {
        "fingerprint": fingerprint,
        "metrics": _finite(dict(finished.metrics)),
        "seconds": round(finished.seconds, 2),
        "process_seconds": round(finished.process_seconds, 2),
    }
    write_whole(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")


def _finished(system: System, scale_name: str, arm: Arm, seed: int, out: Path) -> Finished:
    """Return a pair that is kept, or run it and keep it."""
    assert system.account is not None
    path = kept_path(out, scale_name, arm, seed)
    fingerprint = arm_fingerprint(system, scale_name, arm, seed)
    kept = read_finished(path, fingerprint)
    if kept is not None:
        known = {name: math.nan if value is None else value for name, value in kept["metrics"].items()}
        return Finished(known, kept["seconds"], kept["process_seconds"])
    work = out / "work" / f"{scale_name}-{arm.name}-seed{seed}"
    work.mkdir(parents=True, exist_ok=True)
    wall, process = time.monotonic(), time.process_time()
    run = system.account.scales[scale_name].run
    metrics = {name: _rounded(value) for name, value in run(arm.settings, seed, work).items()}
    finished = Finished(metrics, time.monotonic() - wall, time.process_time() - process)
    keep(path, fingerprint, finished)
    shutil.rmtree(out / "work")
    logger.info("%s, seed %d: %.0f seconds", arm.name, seed, finished.seconds)
    return finished


def _result(
    system: System, scale_name: str, seeds: int, finished: Mapping[tuple[str, int], Finished], command: str
) -> dict[str, Any]:
    import torch

    from multitune.scoring.seeds import holm

    assert system.account is not None
    scale = system.account.scales[scale_name]
    per_seed = [{arm.name: finished[arm.name, seed].metrics for arm in scale.arms} for seed in range(seeds)]
    judged = [judge(claim, per_seed) for claim in scale.claims]
    defined = [one.sign_test_p for one in judged if not math.isnan(one.sign_test_p)]
    corrected = iter(holm(defined))
    facts = machine()
    return {
        "system": system.number,
        "name": system.name,
        "scale": scale_name,
        "seeds": list(range(seeds)),
        "claims": [
            {
                "key": claim.key,
                "statement": claim.statement,
                "measure": claim.measure,
                "threshold": claim.threshold,
                "rule": claim.rule,
                **_told(judgement, math.nan if math.isnan(judgement.sign_test_p) else next(corrected)),
            }
            for claim, judgement in zip(scale.claims, judged, strict=True)
        ],
        "arms": [
            {
                "name": arm.name,
                "told": arm.told,
                "metrics": _by_metric([per_seed[seed][arm.name] for seed in range(seeds)]),
                "seconds": [finished[arm.name, seed].seconds for seed in range(seeds)],
            }
            for arm in scale.arms
        ],
        "command": command,
        "versions": versions(),
        "machine": {
            "processors": facts["processors"],
            "threads": torch.get_num_threads(),
            "memory_gib": facts["memory_gib"],
            "accelerator": accelerator(),
            "python": facts["python"],
        },
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(math.fsum(one.seconds for one in finished.values()), 1),
        "process_seconds": round(math.fsum(one.process_seconds for one in finished.values()), 1),
    }


def _told(judgement: Judgement, corrected_p: float) -> dict[str, Any]:
    """Return a judgement as JSON knows it."""
    return {
        "verdict": judgement.verdict,
        "effects": [_number(effect) for effect in judgement.effects],
        "mean": _number(judgement.mean),
        "interval": [_number(judgement.low), _number(judgement.high)],
        "met": judgement.met,
        "sign_test_p": _number(judgement.sign_test_p),
        "sign_test_p_holm": _number(corrected_p),
    }


def _by_metric(seeds: Sequence[Metrics]) -> dict[str, list[float | None]]:
    """Return every metric's values over the seeds."""
    return {name: [_number(metrics[name]) for metrics in seeds] for name in seeds[0]}


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: float) -> float | None:
    """Return a number as JSON knows it, to six significant digits: None for nan and infinity."""
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    """Return six significant digits: what is judged is what is kept, so that going on changes no verdict."""
    return float(f"{value:.6g}")
