"""What a network's outputs say about its targets: probabilities, values, and the metrics of both.

Shape legend: ``B`` rows, ``O`` outputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score
from torch import Tensor

from multitune.tabular.multitab_schema import TargetColumn
from multitune.tabular.network_layers import output_slices
from multitune.tabular.network_scores import area_under_curve, explained_variance
from multitune.tabular.network_training import Rows


def target_values(output_BO: Tensor, targets: Sequence[TargetColumn]) -> list[Tensor]:
    """Return probabilities of the classes, or values in the target's own unit, of every target."""
    values = []
    for target, columns in zip(targets, output_slices([t.outputs for t in targets]), strict=True):
        out = output_BO[:, columns]
        if target.kind == "binary":
            values.append(torch.cat((torch.sigmoid(-out), torch.sigmoid(out)), dim=1))
        elif target.kind == "multiclass":
            values.append(torch.softmax(out, dim=1))
        else:
            values.append(out[:, 0].double() * target.scale + target.mean)
    return values


def mean_score(output_BO: Tensor, rows: Rows, targets: Sequence[TargetColumn]) -> float:
    """Return the mean over the targets of AUROC and explained variance; nan when no target can be measured.

    Targets that the rows cannot measure, as all their labels are alike, are left out.
    """
    assert rows.labels is not None
    if not bool(output_BO.isfinite().all()):
        return math.nan
    scores = []
    for t, (target, value) in enumerate(zip(targets, target_values(output_BO, targets), strict=True)):
        label = rows.labels[:, t].numpy()
        here = ~np.isnan(label)
        if target.kind == "regression":
            label = label * target.scale + target.mean
        weight = None if rows.weights is None else rows.weights[:, t].numpy()[here]
        measure = explained_variance if target.kind == "regression" else area_under_curve
        scores.append(measure(label[here], value.numpy()[here], weight))
    measured = [score for score in scores if not math.isnan(score)]
    return math.fsum(measured) / len(measured) if measured else math.nan


def target_metrics(
    target: TargetColumn, code: npt.NDArray[Any], value: npt.NDArray[Any], predicted: npt.NDArray[Any], weight: Any
) -> list[float]:
    """Return AUROC, accuracy, explained variance, R2, MAE (nan where they do not apply) and the number of rows.

    Args:
        code: labels as the network learns them, none missing.
        value: probabilities of the classes, or values in the target's own unit.
        predicted: likeliest classes, or the values again.
    """
    nan, rows = math.nan, len(code)
    if not rows:
        return [nan] * 5 + [0]
    if target.kind != "regression":
        hits = accuracy_score(code.astype(int), value.argmax(axis=1), sample_weight=weight)
        return [area_under_curve(code, value, weight), float(hits), nan, nan, nan, rows]
    truth = code * target.scale + target.mean
    explained = explained_variance(truth, predicted, weight)
    r2 = float(r2_score(truth, predicted, sample_weight=weight)) if rows > 1 else nan
    return [nan, nan, explained, r2, float(mean_absolute_error(truth, predicted, sample_weight=weight)), rows]
