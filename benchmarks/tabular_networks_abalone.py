"""Two targets of a real table at once: the rings of abalones (a number) and their sex (three classes).

    python benchmarks/tabular_networks_abalone.py --table FOLDER --out result.json

Networks learn both targets from seven measures, gradient-boosted trees one after the other. Networks keep a tenth of
the training rows aside to stop early, over several seeds; also with nine tenths of the ring counts missing. The rows of
the test file are looked at once per fit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score

from multitune.tabular import MultiTabNet, TabularNetworkBaseline

FEATURES = [f"x{place}" for place in range(7)]
TRAINING = {"initialisation": "torch", "early_stopping": True, "patience": 10, "device": "cpu"}
SEX = {"sex": "multiclass", "rings": "regression"}


def read(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = pd.read_csv(file)
    return table[FEATURES], pd.DataFrame({"rings": table["y"].astype(float), "sex": table["task"]})


def of_networks(estimator: Any, train: Any, test: Any) -> dict[str, float]:
    table = estimator.fit(*train).evaluate(*test)
    return {"rings, R2": table.loc["rings", "r2"], "sex, AUROC": table.loc["sex", "auroc"]}


def of_trees(seed: int, train: Any, test: Any) -> dict[str, float]:
    (X, Y), (X_test, Y_test) = train, test
    known = Y["rings"].notna()
    rings = HistGradientBoostingRegressor(random_state=seed, early_stopping=True).fit(X[known], Y["rings"][known])
    sex = HistGradientBoostingClassifier(random_state=seed, early_stopping=True).fit(X, Y["sex"])
    area = roc_auc_score(Y_test["sex"], sex.predict_proba(X_test), multi_class="ovr")
    return {"rings, R2": r2_score(Y_test["rings"], rings.predict(X_test)), "sex, AUROC": area}


def run(arm: str, seed: int, train: Any, test: Any) -> dict[str, float]:
    started = time.process_time()
    if arm == "boosted trees per target":
        found = of_trees(seed, train, test)
    elif arm == "MultiTabNet":
        found = of_networks(MultiTabNet(target_types=SEX, random_state=seed, **TRAINING), train, test)
    else:
        network = {"perceptron per target": "mlp", "shared bottom": "shared_bottom", "PLE": "ple"}[arm]
        found = of_networks(
            TabularNetworkBaseline(network, target_types=SEX, random_state=seed, **TRAINING), train, test
        )
    return {**found, "process seconds": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="folder of train.csv and test.csv")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    (X, Y), test = read(options.table / "train.csv"), read(options.table / "test.csv")
    sparse = Y.copy()
    sparse.loc[np.random.default_rng(0).random(len(Y)) < 0.9, "rings"] = np.nan
    arms = ("MultiTabNet", "perceptron per target", "shared bottom", "PLE", "boosted trees per target")
    result: dict[str, Any] = {"command": f"python benchmarks/tabular_networks_abalone.py --seeds {options.seeds}"}
    for title, labels in (("all labels", Y), ("a tenth of the rings", sparse)):
        for arm in arms:
            runs = [run(arm, seed, (X, labels), test) for seed in range(options.seeds)]
            means = {name: statistics.fmean(one[name] for one in runs) for name in runs[0]}
            spread = {name: statistics.stdev(one[name] for one in runs) for name in runs[0]}
            result.setdefault(title, {})[arm] = {"means": means, "deviations": spread}
            print(title, arm, {name: round(value, 4) for name, value in means.items()}, flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
