"""A merge from files to files: tensors in parallel, each in chunks, written as they are done.

Arithmetic is float32 and rounded once. At any moment a thread holds a few chunks, so that memory grows with neither
the models nor their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

import multitune
from multitune.errors import MultituneError
from multitune.weights.arrangement import Arrangement, Job, arrange, as_json
from multitune.weights.beforehand import global_statistics, layer_of, norm_alpha
from multitune.weights.checkpoints import TORCH
from multitune.weights.config import MergeConfig
from multitune.weights.lines import depth_factor
from multitune.weights.memory import PeakMemory
from multitune.weights.methods import METHODS, reads_rows, statistics_of
from multitune.weights.parameters import check
from multitune.weights.renaming import renamed
from multitune.weights.selection import Map
from multitune.weights.streaming import CHUNK, Stream, source_of
from multitune.weights.vocabulary import extended_tokenizer
from multitune.weights.writing import Layout, Writer, check_space, check_target, lay_out, partial_folder

GPU_CHUNK = 1 << 22

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files that are copied from the base (without one, from the first model); code that a model brings is not."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the written folder.
        tensors: how many it has.
        resumed: how many of them an earlier, killed attempt had written.
        bytes_read: of the inputs' tensors, each counted once.
        bytes_written: of the result's tensors.
        seconds: by the clock.
        process_seconds: of all threads.
        peak_bytes: largest anonymous memory seen (Linux; elsewhere 0): pages of mapped files are not in it.
        left_out: tensors of an input that the result does not have, with the reason.
        parameters: the method's parameters by tensor, as resolved.
        lines_alpha: LiNeS' alpha, as given or found; None without LiNeS.
    """

    out: Path
    tensors: int
    resumed: int
    bytes_read: int
    bytes_written: int
    seconds: float
    process_seconds: float
    peak_bytes: int
    left_out: dict[str, str]
    parameters: dict[str, dict[str, Any]]
    lines_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Workplace:
    """How a merge is carried out; none of it changes the result (on one kind of device).

    Attributes:
        chunk: entries of a chunk.
        threads: tensors that are worked on at once.
        device: ``cpu`` or ``cuda``.
    """

    chunk: int
    threads: int
    device: str


def merge(
    config: MergeConfig,
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    chunk: int | None = None,
    device: str | None = None,
) -> MergeReport:
    """Merge models into a new folder, which appears when it is whole.

    Args:
        config: what to merge, and how.
        out: the folder, absent or empty.
        progress: called with (bytes of the result written, all of them) after every tensor.
        threads: tensors at once; None: the cores that this process may use.
        chunk: entries that a thread has in hand per model; None: what suits the device.
        device: ``cpu`` or ``cuda``; None: a GPU if there is one.

    Raises:
        MultituneError: a mistake in ``config``, inputs that do not fit together, weights that are not finite, an output
            folder inside an input or not empty, too little space. Nothing is left then. A killed merge leaves a folder
            ``.NAME.partial`` beside the target, from which the same merge goes on.
    """
    clock, process_clock = time.perf_counter(), time.process_time()
    check(config)
    arrangement = arrange(config)
    check_target(out, [each.folder for each in arrangement.inputs])
    layout = lay_out([(job.name, job.dtype, job.shape) for job in arrangement.jobs], _provenance(arrangement))
    total = sum(slot.bytes for slot in layout.slots.values())
    check_space(out, total)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = Workplace(chunk or (CHUNK if device == "cpu" else GPU_CHUNK), threads or _cores(), device)
    try:
        writer = Writer(out, layout, _fingerprint(arrangement, layout))
    except OSError as error:
        raise _cannot_write(error, out) from None
    work = _Work(arrangement, writer, place)
    try:
        with PeakMemory() as peak:
            done = sum(layout.slots[name].bytes for name in writer.finished)
            for name in work.run():
                done += layout.slots[name].bytes
                if progress is not None:
                    progress(done, total)
            _companions(arrangement, writer.folder)
            writer.finish()
    except OSError as error:
        writer.close()
        raise _cannot_write(error, out) from None
    except MultituneError:
        writer.close()
        shutil.rmtree(partial_folder(out), ignore_errors=True)
        raise
    except BaseException:
        writer.close()
        raise
    return MergeReport(
        out,
        len(arrangement.jobs),
        len(writer.finished),
        sum(each.bytes for each in arrangement.inputs),
        total,
        time.perf_counter() - clock,
        time.process_time() - process_clock,
        peak.bytes,
        arrangement.left_out,
        {job.name: job.parameters for job in arrangement.jobs if job.merged},
        work.alpha,
    )


def _cannot_write(error: OSError, out: Path) -> MultituneError:
    return MultituneError(
        f"The result cannot be written: {error.strerror or error}.",
        str(out),
        "Mend that, and give the same command again: what is written is kept.",
    )


class _Work:
    """The tensors of one merge and what is known of all of them; one thread works on one tensor.

    Threads over tensors are all the parallelism there is: operations on chunks are too short to be split.
    """

    def __init__(self, arrangement: Arrangement, writer: Writer, place: Workplace) -> None:
        self.config, self.writer, self.place = arrangement.config, writer, place
        self.stop = threading.Event()
        self.jobs = [job for job in arrangement.jobs if job.name not in writer.finished]
        self.jobs.sort(key=lambda job: (-writer.layout.slots[job.name].bytes, job.name))
        self.merged = [job for job in arrangement.jobs if job.merged and 0 not in job.shape]
        self.statistics: dict[str, Any] = {}
        self.alpha: float | None = None

    def run(self) -> Iterator[str]:
        """Write all tensors that are not finished, the largest first; give their names as they are done."""
        with ThreadPoolExecutor(self.place.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                if self.jobs:
                    self._look_ahead(pool.map)
                for future in as_completed([pool.submit(self._one, job) for job in self.jobs]):
                    yield future.result()
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)

    def _look_ahead(self, each: Map) -> None:
        config, lines = self.config, self.config.lines
        self.statistics = global_statistics(self.merged, config, self._open, each)
        if lines is not None and lines.alpha == "norm":
            self.alpha = norm_alpha(self.merged, config, self._open, self.statistics, each)
            if not isfinite(self.alpha):
                raise _some_not_finite(self.merged)
        elif lines is not None:
            self.alpha = float(lines.alpha)

    def _open(self, job: Job) -> Stream:
        if self.stop.is_set():
            raise CancelledError
        return stream_of(job, self.config, self.place)

    def _one(self, job: Job) -> str:
        if not job.merged:
            _copy_equal(job, self.writer)
        elif 0 not in job.shape:
            self._merge(job)
        self.writer.close_tensor(job.name)
        return job.name

    def _merge(self, job: Job) -> None:
        """Merge one tensor, chunk by chunk, into its place in the result."""
        config, stream, layer = self.config, self._open(job), layer_of(job, self.config)
        if job.name in self.statistics:
            found = self.statistics[job.name]
        else:
            found = statistics_of(config.method, [stream], job.parameters, [layer])[0]
        factor = 1.0
        if config.lines is not None and self.alpha is not None:
            factor = depth_factor(job.place, config.lines, self.alpha)
        dtype: torch.dtype = getattr(torch, TORCH[job.dtype])
        largest = torch.finfo(dtype).max
        for chunk in stream:
            if self.stop.is_set():
                raise CancelledError
            piece = replace(layer, start=chunk.start, statistics=found)
            merged = METHODS[config.method](chunk.base, chunk.deltas, job.parameters, piece)
            if factor != 1.0:
                merged = merged.sub(chunk.anchor).mul_(factor).add_(chunk.anchor)
            if not merged.abs().amax() <= largest:
                raise _not_finite(job, chunk.start, merged.numel())
            data = merged.to(dtype).cpu().view(torch.uint8).numpy().data
            self.writer.write(job.name, chunk.start * dtype.itemsize, data)


def stream_of(job: Job, config: MergeConfig, place: Workplace) -> Stream:
    """Return the chunks of a tensor of all models."""

    return Stream(
        source_of(job.base) if job.base else None,
        [source_of(origin) for origin in job.models],
        job.shape,
        anchor=source_of(job.anchor) if job.anchor else None,
        chunk=place.chunk,
        whole_rows=reads_rows(config.method, job.parameters),
        device=place.device,
    )


def _copy_equal(job: Job, writer: Writer) -> None:
    """Copy a tensor of integers that is the same everywhere.

    Raises:
        MultituneError: it is not.
    """
    origins = [origin for origin in job.models if origin.name in origin.checkpoint.entries]
    if job.base is not None or not origins:
        origins.insert(0, job.base or job.anchor or job.models[0])
    data = origins[0].checkpoint.raw(origins[0].name)
    for other in origins[1:]:
        if other.checkpoint.raw(other.name) != data:
            raise MultituneError(
                f"The tensor '{job.name}' is {job.dtype} and differs between the models: it cannot be merged.",
                f"{origins[0].checkpoint.folder} and {other.checkpoint.folder}",
                "Integers and quantised weights are copied where they are equal; convert quantised models first.",
            )
    writer.write(job.name, 0, data)


def _not_finite(job: Job, start: int, length: int) -> MultituneError:
    """Return the error for a chunk with a result that cannot be stored, naming the input that is to blame."""
    for origin in [origin for origin in (job.base, job.anchor, *job.models) if origin is not None]:
        values = torch.empty(length)
        source_of(origin).fill(start, values)
        if not torch.isfinite(values).all():
            return MultituneError(
                f"The tensor '{origin.name}' holds values that are not finite (NaN or infinity).",
                str(origin.checkpoint.folder),
                "That model is damaged or its training diverged; leave it out.",
            )
    return MultituneError(
        f"The merged tensor '{job.name}' is too large for {TORCH[job.dtype]}.",
        f"method parameters: {job.parameters}",
        "Choose smaller factors, or dtype: float32 or bfloat16.",
    )


def _some_not_finite(jobs: Sequence[Job]) -> MultituneError:
    """Return the error for norms that are not finite: of the first tensor to blame."""
    for job in jobs:
        error = _not_finite(job, 0, prod(job.shape))
        if "not finite" in error.what:
            return error
    return MultituneError(
        "LiNeS' alpha is not a finite number: the norms of the task vectors overflow.", "lines.alpha", "Give a number."
    )


def _companions(arrangement: Arrangement, folder: Path) -> None:
    """Write config.json, and copy tokenizer and chat template."""
    leader = arrangement.leader
    config = leader.config | arrangement.changes
    if arrangement.config.dtype is not None:
        config |= {key: arrangement.config.dtype for key in ("dtype", "torch_dtype") if key in config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COMPANIONS:
        if (leader.folder / name).is_file():
            shutil.copyfile(leader.folder / name, folder / name)
    if arrangement.config.chat_template is not None:
        (folder / "chat_template.jinja").write_text(arrangement.config.chat_template, encoding="utf-8")
    if arrangement.added_tokens:
        text = extended_tokenizer(leader.folder, arrangement.added_tokens)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def _provenance(arrangement: Arrangement) -> Mapping[str, str]:
    """Return what every written shard says of its making; the same merge says the same, wherever the models lie."""
    inputs = [{"model": each.folder.name, "headers": each.fingerprint} for each in arrangement.inputs]
    config = renamed(arrangement.config, lambda name: Path(name).name)
    return {
        "format": "pt",
        "multitune": multitune.__version__,
        "merge": as_json(config),
        "inputs": json.dumps(inputs, sort_keys=True),
    }


def _fingerprint(arrangement: Arrangement, layout: Layout) -> str:
    """Return what decides the bytes of the result: its headers and the inputs as they lie on the disk."""
    digest = hashlib.sha256()
    for name in sorted(layout.headers):
        digest.update(layout.headers[name])
    for checkpoint in arrangement.inputs:
        beside = [checkpoint.folder / name for name in ("config.json", "adapter_config.json", *COMPANIONS)]
        weights = {entry.file for entry in checkpoint.entries.values()}
        for file in sorted(weights | {file for file in beside if file.is_file()}):
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
