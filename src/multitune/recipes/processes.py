"""Nodes in processes of their own on this machine."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any


class LocalProcesses:
    """Runs up to ``jobs`` nodes at once, each in a Python process with its share of the cores.

    A process does one node after the other, so that the libraries are loaded once per job. The processes are in
    sessions of their own: Ctrl-C reaches this one only, which asks them to stop. They hold on to the run folder's lock,
    and stop by themselves when this process is gone.

    Args:
        jobs: processes at once.
        lock: file descriptor of the run folder's lock.

    Attributes:
        slots: nodes that may run at once.
        threads: of torch, per process; OMP_NUM_THREADS decides where it is set.
    """

    def __init__(self, jobs: int, lock: int) -> None:
        self.slots = jobs
        self.threads = threads_each(jobs)
        self._lock = lock
        self._gpus = _gpus()
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * jobs
        self._busy: dict[int, str] = {}
        self._ended: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()

    def start(self, key: str, arguments: Mapping[str, Any]) -> None:
        """Start a node in a process that has nothing to do.

        Args:
            key: names it in ``next_ended``.
            arguments: of ``do_node``, except ``threads``.
        """
        slot = next(slot for slot in range(self.slots) if slot not in self._busy)
        process = self._processes[slot]
        if process is None or process.poll() is not None:
            process = self._processes[slot] = self._process(slot)
        self._busy[slot] = key
        assert process.stdin is not None
        process.stdin.write(json.dumps({**arguments, "threads": self.threads}).encode() + b"\n")
        process.stdin.flush()
        threading.Thread(target=self._wait, args=(slot, process, arguments["log"]), daemon=True).start()

    def next_ended(self, seconds: float) -> tuple[str, dict[str, Any]] | None:
        """Return the key and outcome of a node that ended, or None when none did for so long."""
        try:
            slot, outcome = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        return self._busy.pop(slot), outcome

    def ask_to_stop(self) -> None:
        """Let every node stop after its checkpoint."""
        for process in filter(None, self._processes):
            assert process.stdin is not None
            process.stdin.close()

    def close(self) -> None:
        """End the processes; what still runs is ended at once."""
        for slot, process in enumerate(self._processes):
            if process is not None and slot in self._busy:
                process.kill()
        self.ask_to_stop()
        for process in filter(None, self._processes):
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _wait(self, slot: int, process: subprocess.Popen[bytes], log: str) -> None:
        assert process.stdout is not None
        said = process.stdout.readline()
        outcome = json.loads(said) if said.endswith(b"\n") else _died(process.wait(), log)
        self._ended.put((slot, outcome))

    def _process(self, slot: int) -> subprocess.Popen[bytes]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        return subprocess.Popen(
            [sys.executable, "-m", "multitune.recipes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, **gpu},
            start_new_session=True,
            pass_fds=(self._lock,),
        )


def threads_each(jobs: int) -> int:
    """Return the threads of each of so many processes: OMP_NUM_THREADS, or an equal share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, len(os.sched_getaffinity(0)) // jobs)


def _gpus() -> list[str]:
    """Return the GPUs to share out, as CUDA_VISIBLE_DEVICES names them; [] where there are not several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(count)]


def _died(code: int, log: str) -> dict[str, Any]:
    """Return the outcome of a process that ended without one; killed by SIGTERM it was asked to stop."""
    if code == -15:
        return {"status": "interrupted", "errors": []}
    what = f"The process was killed by signal {-code}." if code < 0 else f"The process ended with code {code}."
    mend = "Look at its last lines; without any, memory may have run out: use fewer --jobs. What is done is kept."
    return {"status": "failure", "errors": [{"what": what, "where": log, "mend": mend}]}
