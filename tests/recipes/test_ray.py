"""A real Ray, started here with two CPUs, leaves what one node after the other leaves; silence is told in seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from multitune.errors import MultituneError
from multitune.recipes import cluster
from multitune.recipes.cluster import RayCluster
from multitune.recipes.executor import run
from multitune.recipes.failures import NodesFailed
from multitune.recipes.loading import load_recipe
from tests.recipes.test_jobs import results, same_threads

pytest.importorskip("ray", reason="the extra ray is not installed")
assert same_threads  # a fixture that works by its presence

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


def test_ray_leaves_what_one_node_after_the_other_leaves_and_a_failure_loses_no_other(recipe, write, data, tmp_path):
    train = data / "data" / "echo" / "train.jsonl"
    whole = train.read_text()
    train.write_text(whole + '{"input": "cut\n')
    recipe["steps"] = {
        "one": {**recipe["steps"]["joint"], "tasks": ["sign"]},
        "two": {**recipe["steps"]["joint"], "tasks": ["echo"]},
    }
    recipe["tasks"]["echo"]["kind"] = "generate"
    path, out = write(recipe), tmp_path / "ray"
    with pytest.raises(NodesFailed) as error:
        run(load_recipe(path), out, ray="local", jobs=2)
    assert [one.what.partition(":")[0] for one in error.value.errors] == ["two"]
    assert "train.jsonl:25" in str(error.value)
    train.write_text(whole)
    assert run(load_recipe(path), out, ray="local", jobs=2).done == ("two", "two@score")
    assert run(load_recipe(path), out, ray="nowhere:1").done == ()  # nothing to do: nobody is asked
    run(load_recipe(path), tmp_path / "sequential")
    distributed, sequential = results(out), results(tmp_path / "sequential")
    assert list(distributed) == list(sequential)
    assert {name for name in distributed if distributed[name] != sequential[name]} == set()


def test_ctrl_c_leaves_checkpoints_on_ray_too(recipe, write, tmp_path):
    recipe["score"] = False
    recipe["steps"]["joint"]["training"] |= {"steps": 1000, "save_steps": 100000, "batch_size": 32}
    words = [sys.executable, "-m", "multitune", "run", str(write(recipe)), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*words, "--ray", "local", "--jobs", "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log = tmp_path / "run" / "steps" / "joint" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert list(log.parent.glob("checkpoints/checkpoint-*/whole.json"))


def test_an_address_that_does_not_answer_is_told(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    for address in (closed, f"ray://{closed}"):
        with pytest.raises(MultituneError, match=f"No Ray cluster answers at {address}"):
            RayCluster(address, None)
    monkeypatch.setattr(cluster, "CONNECTED_WITHIN", 1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(MultituneError, match="something listens there and is silent"):
            RayCluster(f"127.0.0.1:{deaf.getsockname()[1]}", None)


@pytest.mark.parametrize("address", ["locall", "head:port", ":6379", "host:99999"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(MultituneError, match="is no address of a Ray cluster"):
        RayCluster(address, None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MultituneError, match="Ray is not installed"):
        RayCluster("local", 2)
