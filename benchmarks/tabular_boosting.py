"""How fast R-MTGB is: its histogram engine against its exact one and against LightGBM per task.

Every run is a process of its own on one thread, with what is compiled compiled before; the figure is the process time
of `fit`, binning included, and the rise of the process's peak memory during it. The table: numbers from a normal
distribution, a target that the last tasks turn round. All have the same number of trees per row and the same depth.

    python benchmarks/tabular_boosting.py --out result.json
    python benchmarks/tabular_boosting.py --growth --out result.json --plot growth.svg
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MAIN = {"rows": 20_000, "features": 20, "tasks": 10, "blocks": [50, 50, 50]}
GROWTH = {"rows": 100_000, "features": 20, "tasks": 10, "blocks": [10, 10, 10], "depth": 3}
GROWN: dict[str, list[int]] = {
    "rows": [10_000, 100_000, 1_000_000],
    "features": [10, 20, 40, 80],
    "tasks": [1, 10, 100, 1000],
}


def table(rows: int, features: int, tasks: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    X = random.normal(size=(rows, features))
    task = random.integers(0, tasks, rows)
    y = X[:, 0] * np.where(task < 0.8 * tasks, 1, -1) + np.sin(3 * X[:, 1]) + 0.1 * random.normal(size=rows)
    return X, y, task


def run_one(run: dict[str, Any]) -> dict[str, Any]:
    from multitune.tabular import RMTGBRegressor, TaskBaseline

    blocks = tuple(run["blocks"])
    if run["arm"] == "LightGBM":
        model: Any = TaskBaseline(n_estimators=sum(blocks), max_depth=run["depth"], min_samples_leaf=1)
    else:
        model = RMTGBRegressor(blocks, max_depth=run["depth"], engine=run["arm"], random_state=0)
    X, y, task = table(200, 5, 2)
    RMTGBRegressor((1, 1, 1)).fit(X, y, task=task)
    TaskBaseline(n_estimators=2).fit(X, y, task)
    X, y, task = table(run["rows"], run["features"], run["tasks"])
    before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.fit(X, y, task=task)
    seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    before = time.process_time()
    model.predict(X, task=task)
    return {**run, "seconds": seconds, "predict_seconds": time.process_time() - before, "peak_mebibytes": peak / 1024}


def in_a_process(run: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--run", json.dumps(run)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    if finished.returncode:
        sys.exit(f"{run} failed:\n{finished.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    print(json.dumps(result), flush=True)
    return result


def compared() -> list[dict[str, Any]]:
    """The engines on one table, LightGBM and hist in the order A B B A, exact once: it takes minutes."""
    runs = []
    for depth in (1, 3):
        for arm in ("hist", "LightGBM", "LightGBM", "hist", "exact"):
            runs.append(in_a_process({"arm": arm, "depth": depth, **MAIN}))
    return runs


def grown() -> list[dict[str, Any]]:
    runs = []
    for what, sizes in GROWN.items():
        for size in sizes:
            for arm in ("hist", "LightGBM"):
                runs.append({"grown": what, **in_a_process({"arm": arm, **GROWTH, what: size})})
    return runs


def drawn(runs: list[dict[str, Any]]) -> str:
    """Return the growth of the histogram engine as an SVG."""
    from tabular_networks import plot

    hist = [run for run in runs if run["arm"] == "hist"]
    return plot({what: [[run[what], run["seconds"]] for run in hist if run["grown"] == what] for what in GROWN})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=json.loads, help="do one run and print its JSON (used by the benchmark itself)")
    parser.add_argument("--growth", action="store_true", help="measure growth with rows, features and tasks instead")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--plot", type=Path, help="write the growth as SVG")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_one(options.run)))
        return
    runs = grown() if options.growth else compared()
    command = "python benchmarks/tabular_boosting.py" + (" --growth" if options.growth else "")
    result = {"command": command, "load_at_end": os.getloadavg()[0], "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(drawn(runs))


if __name__ == "__main__":
    main()
