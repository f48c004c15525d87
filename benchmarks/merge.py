"""Merging against mergekit 0.1.5: process time, wall time and peak anonymous memory, in one run on the same files.

Random weights of a Llama in bfloat16, sharded: a base and four models near it. Each merge is a process of its own,
start included, in the order A B B A. mergekit runs in an environment of its own, computes in float32 and writes
bfloat16, as multitune does. Results are compared in units of the last bfloat16 place.

    python -m venv /somewhere && /somewhere/bin/pip install mergekit==0.1.5
    python benchmarks/merge.py --mergekit /somewhere/bin/mergekit-yaml --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = 4
SHAPE = {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": 0.25}, {"weight": 0.25}),
    "task_arithmetic": ({"weight": 0.3}, {"weight": 0.3}),
    "ties": ({"weight": 0.5, "density": 0.2}, {"weight": 0.5, "density": 0.2}),
    "dare_linear": ({"weight": 0.3, "density": 0.3}, {"weight": 0.3, "density": 0.3}),
    "breadcrumbs": (
        {"weight": 0.3, "keep": 0.15, "drop_top": 0.006},
        {"weight": 0.3, "density": 0.15, "gamma": 0.006},
    ),
}
"""Method -> our parameters and mergekit's names for them."""

PROGRAM = """
import sys
from pathlib import Path
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
config = MergeConfig.model_validate_json(Path(sys.argv[1]).read_text())
merge(config, Path(sys.argv[2]), threads=int(sys.argv[3]))
"""


def write_models(folder: Path, layers: int) -> int:
    """Write the base and the models; return the parameters of one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(num_hidden_layers=layers, num_key_value_heads=16, **SHAPE)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(folder / "base", max_shard_size="200MB")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number in range(MODELS):
        generator = torch.Generator().manual_seed(number + 1)
        noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        model.load_state_dict({name: (base[name] + 0.002 * noise[name]).to(torch.bfloat16) for name in base})
        model.save_pretrained(folder / f"model{number}", max_shard_size="200MB")
    return count


def ours(method: str, folder: Path, out: Path, threads: int) -> list[str]:
    parameters, _ = METHODS[method]
    config = {
        "method": method,
        "base": None if method == "linear" else str(folder / "base"),
        "models": [str(folder / f"model{number}") for number in range(MODELS)],
        "parameters": parameters,
        "compat": "mergekit",
    }
    file = out.parent / "ours.json"
    file.write_text(json.dumps(config))
    return [sys.executable, "-c", PROGRAM, str(file), str(out), str(threads)]


def theirs(method: str, folder: Path, out: Path, mergekit: str) -> list[str]:
    _, parameters = METHODS[method]
    models = [{"model": str(folder / f"model{number}"), "parameters": parameters} for number in range(MODELS)]
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    if method != "linear":
        config["base_model"] = str(folder / "base")
    file = out.parent / "theirs.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return [mergekit, str(file), str(out), "--no-copy-tokenizer", "--quiet"]


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Run a command; return seconds of its processes, by the clock, and the peak of its anonymous memory in bytes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    start, peak = time.perf_counter(), 0
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return {
        "process_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "wall_seconds": round(time.perf_counter() - start, 2),
        "peak_anonymous_bytes": peak,
    }


def anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def compared(method: str, folder: Path, left: Path, right: Path) -> dict[str, float]:
    """Return how the two results differ, in units of the last bfloat16 place.

    Where inputs are bfloat16, many changes are equal to the last bit, and so are some on both sides of a threshold.
    multitune keeps the first of them, mergekit whichever its unstable sort yields: ``tied`` counts these among the
    entries that differ by more than one unit.
    """
    import numpy as np
    import torch

    from multitune.weights.checkpoints import Checkpoint

    one, two, base = (Checkpoint.open(each) for each in (left, right, folder / "base"))
    models = [Checkpoint.open(folder / f"model{number}") for number in range(MODELS)]
    total = unequal = beyond = tied = 0
    norm = [0.0, 0.0]
    for name in one.names:
        ours_bits, theirs_bits = (each.tensor(name).view(torch.int16).int().flatten() for each in (one, two))
        distance = (ordered(ours_bits) - ordered(theirs_bits)).abs()
        far = torch.nonzero(distance > 1).flatten()
        total, unequal, beyond = total + distance.numel(), unequal + int((distance > 0).sum()), beyond + len(far)
        reference = base.tensor(name).float()
        for side, each in enumerate((one, two)):
            norm[side] += float((each.tensor(name).float() - reference).abs().sum(dtype=torch.float64))
        if len(far) and method in ("ties", "breadcrumbs"):
            at_border = torch.zeros(len(far), dtype=torch.bool)
            parameters = METHODS[method][0]
            for model in models:
                delta = (model.tensor(name).float() - reference).abs().flatten()
                count = delta.numel()
                first = int(count * parameters.get("drop_top", 0))
                last = first + int(count * parameters.get("density", parameters.get("keep", 1)))
                borders = [count - border for border in (first, last) if 0 < border < count]
                parted = np.partition(delta.numpy(), borders)
                for border in borders:
                    at_border |= delta[far] == float(parted[border])
            tied += int(at_border.sum())
    return {
        "entries": total,
        "unequal": unequal / total,
        "beyond_one_unit": beyond / total,
        "of_these_tied": tied / beyond if beyond else 0.0,
        "l1_norm_ratio_to_mergekit": norm[0] / norm[1] if norm[1] else 1.0,
    }


def ordered(bits: Any) -> Any:
    """Return bfloat16 patterns as integers in the order of their values."""
    import torch

    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="path of mergekit-yaml in its own environment")
    parser.add_argument("--layers", type=int, default=14, help="14: 0.49 GB per model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--folder", type=Path, help="where the models are written, or lie from an earlier run")
    parser.add_argument("--out", type=Path, help="JSON of all runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        work = Path(name) / "work"
        work.mkdir()
        if not (folder / f"model{MODELS - 1}" / "config.json").exists():
            write_models(folder, arguments.layers)
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        result: dict[str, Any] = {
            "machine": f"{platform.system()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)),
            "threads": arguments.threads,
            "bytes_per_model": size,
            "models": MODELS,
            "methods": {},
        }
        for file in sorted(folder.rglob("*.safetensors")):  # into the page cache
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
        for method in arguments.methods:
            runs: dict[str, list[dict[str, float]]] = {"multitune": [], "mergekit": []}
            for tool in ("multitune", "mergekit", "mergekit", "multitune"):
                out = work / tool
                shutil.rmtree(out, ignore_errors=True)
                command = (
                    ours(method, folder, out, arguments.threads)
                    if tool == "multitune"
                    else theirs(method, folder, out, arguments.mergekit)
                )
                load = os.getloadavg()[0]
                runs[tool].append(measured(command, work / "log") | {"load_before": round(load, 2)})
                print(method, tool, runs[tool][-1], flush=True)
            seconds = {tool: sum(run["process_seconds"] for run in own) / len(own) for tool, own in runs.items()}
            result["methods"][method] = {
                "runs": runs,
                "process_time_ratio": round(seconds["mergekit"] / seconds["multitune"], 2),
                "nanoseconds_per_entry": {tool: round(each / (size / 2) * 1e9, 1) for tool, each in seconds.items()},
                "difference": compared(method, folder, work / "multitune", work / "mergekit"),
            }
            print(method, result["methods"][method]["process_time_ratio"], result["methods"][method]["difference"])
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
