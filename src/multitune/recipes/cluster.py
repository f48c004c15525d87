"""Nodes on a Ray cluster, or on a Ray that is started here for as long as the run takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from multitune.errors import MultituneError
from multitune.recipes.processes import threads_each
from multitune.recipes.worker import do_node

LOCAL = "local"

ANSWERS_WITHIN, CONNECTED_WITHIN = 5, 30
"""Seconds in which an address must take a connection, and a cluster must take a driver."""

CONNECTS = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
"""A driver that only connects, in a process that can be ended when nothing comes back; Ray would try for minutes."""

OBJECT_STORE = 80 * 2**20  # bytes; arguments and outcomes are small

TAKEN_ALONG = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TOKENIZERS_PARALLELISM")
"""Variables of this process's environment that decide where a node finds its data and models."""


class RayCluster:
    """Runs nodes as Ray tasks; the methods are those of ``LocalProcesses``.

    Every machine of the cluster needs the same multitune, and the run folder, the data and the cache under the same
    paths.

    Args:
        address: host:port of a cluster's head, "auto" for the one this machine belongs to, ray://host:port through a
            Ray client, or "local" to start one here.
        jobs: nodes at once; None for one per GPU of the cluster, else one per machine.

    Raises:
        MultituneError: Ray is not installed, or the address does not answer.
    """

    def __init__(self, address: str, jobs: int | None) -> None:
        self._ray = _connected(address)
        resources = self._ray.cluster_resources()
        machines = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        gpus = int(resources.get("GPU", 0))
        self.slots = jobs or gpus or len(machines)
        widest = int(max(machines))
        share = max(1, min(int(resources.get("CPU", 1)) // self.slots, widest))
        self.threads = threads_each(self.slots) if address == LOCAL else share
        cpus = min(self.threads, share)
        # GPUs are shared by as many nodes as there are more slots than GPUs
        needs_gpus = min(1.0, gpus / self.slots) if gpus else 0
        environment = {name: os.environ[name] for name in TAKEN_ALONG if name in os.environ}
        self._do_node = self._ray.remote(do_node).options(
            num_cpus=cpus, num_gpus=needs_gpus, max_retries=0, runtime_env={"env_vars": environment}
        )
        self._running: dict[Any, str] = {}
        self._stopping = False

    def start(self, key: str, arguments: Mapping[str, Any]) -> None:
        """Submit a node."""
        self._running[self._do_node.remote(**arguments, threads=self.threads)] = key

    def next_ended(self, seconds: float) -> tuple[str, dict[str, Any]] | None:
        """Return the key and outcome of a node that ended, or None when none did for so long."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if not ended:
            return None
        key = self._running.pop(ended[0])
        try:
            return key, self._ray.get(ended[0])
        except self._ray.exceptions.TaskCancelledError:
            return key, {"status": "interrupted", "errors": []}
        except self._ray.exceptions.RayError as error:
            return key, _lost(error)

    def ask_to_stop(self) -> None:
        """Let every node stop after its checkpoint: Ray sends it an interrupt."""
        for node in self._running:
            self._ray.cancel(node, force=False)

    def close(self) -> None:
        """End what still runs, at once, and leave the cluster; one that was started here ends with it."""
        for node in self._running:
            self._ray.cancel(node, force=True)
        self._ray.shutdown()


def _connected(address: str) -> Any:
    """Return the module ray, connected."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MultituneError(
            "Ray is not installed.", f"--ray {address}", "pip install 'multitune[ray]', or use --jobs."
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0))
        ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        return ray
    if address != "auto":
        _refuse_silence(address)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises what its parts raise: ConnectionError, RuntimeError, ValueError, gRPC's own
        raise _no_answer(address, _last_line(str(error))) from error
    return ray


def _refuse_silence(address: str) -> None:
    """Refuse an address where no Ray answers, in seconds."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise MultituneError(
            f"'{address}' is no address of a Ray cluster.",
            "--ray",
            "Write host:port, auto, or local to start one here.",
        )
    try:
        socket.create_connection((host, port), timeout=ANSWERS_WITHIN).close()
    except OSError as error:
        raise _no_answer(address, error.strerror or str(error)) from error
    if parts.scheme:
        return  # a Ray client's port: connecting tells
    try:
        command = [sys.executable, "-c", CONNECTS, address]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=CONNECTED_WITHIN, check=False)
    except subprocess.TimeoutExpired as error:
        raise _no_answer(address, "something listens there and is silent") from error
    if "AuthenticationError" in tried.stderr:
        raise MultituneError(
            f"The Ray cluster at {address} wants a token.",
            f"--ray {address}",
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to that of the cluster (`ray get-auth-token` there).",
        )
    if tried.returncode:
        raise _no_answer(address, _last_line(tried.stderr))


def _no_answer(address: str, why: str) -> MultituneError:
    return MultituneError(
        f"No Ray cluster answers at {address}{': ' + why if why else ''}.",
        f"--ray {address}",
        "Start one there with `ray start --head`, correct the address, or say --ray local.",
    )


def _lost(error: Exception) -> dict[str, Any]:
    """Return the outcome of a node whose worker ended without one."""
    what = f"{type(error).__name__}: {_last_line(str(error))}"
    mend = "Every machine needs the same multitune and enough memory; `ray status` tells how they are. Run it again."
    return {"status": "failure", "errors": [{"what": what, "where": "--ray", "mend": mend}]}


def _last_line(text: str) -> str:
    """Return the last line that says something, in which Python and Ray put the reason."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
