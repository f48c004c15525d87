"""Fit a MultiTab-Net in as many processes as the launcher starts, and write what each of them predicts.

torchrun --nproc-per-node 2 fit_in_processes.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from multitune.tabular import MultiTabBench, MultiTabNet


def main(folder: Path) -> None:
    table = MultiTabBench(3, 4, degrees=1, classes=[0, 2, 3]).sample(203)
    labels = table.Y.copy()
    labels[np.random.default_rng(0).random(labels.shape) < 0.3] = np.nan
    estimator = MultiTabNet(
        initialisation="torch",
        embed_dim=8,
        heads=2,
        ff_dim=16,
        epochs=4,
        batch_size=32,
        learning_rate=1e-2,
        regression_loss="rmse",
        early_stopping=True,
        validation_fraction=0.2,
        random_state=0,
        device="cpu",
    ).fit(table.X, labels)
    probabilities = [*estimator.predict_proba(table.X).values(), estimator.predict(table.X)[["target_0"]]]
    name = os.environ.get("RANK", "alone")
    np.save(folder / f"{name}.npy", np.hstack(probabilities))
    unseeded = MultiTabNet(embed_dim=8, heads=2, epochs=1, initialisation="torch", device="cpu").fit(table.X, labels)
    np.save(folder / f"{name}-unseeded.npy", unseeded.predict(table.X)["target_0"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
