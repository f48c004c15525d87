"""AdaMerging (arXiv 2310.02575): merging coefficients that make a merged model sure of rows without labels.

theta = theta_0 + sum_k lam_k tau_k (task-wise), or lam_k^l per tensor (layer-wise); min over lam of the sum over tasks
of the mean entropy of the predictions. It is aTLAS with another loss, start and range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import SETTINGS, LearningConfig
from multitune.weights.learned.learning import Learned, LearningTask, learn_coefficients
from multitune.weights.learned.vectors import TaskVector


def adamerging(
    model: nn.Module,
    vectors: Sequence[TaskVector],
    tasks: Sequence[LearningTask],
    wise: Literal["task", "layer"] = "layer",
    config: LearningConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Learned:
    """Learn merging coefficients from unlabelled rows of the tasks that are merged.

    Args:
        model: holds the pretrained weights.
        tasks: ``entropy_task(..., margin=None)`` of every task's rows.
        wise: one coefficient per vector, or one per vector and tensor, as the authors count layers.
        config: None: Adam at 1e-3 without decay from 0.3, kept between 0 and 1, one epoch, the last step kept. The
            authors take 500 steps of 16 rows per task: give an epoch as many batches, or more epochs.
    """
    composition = composed(model, vectors, "all" if wise == "task" else "tensor")
    return learn_coefficients(model, composition, tasks, config or SETTINGS["adamerging"], progress=progress)
