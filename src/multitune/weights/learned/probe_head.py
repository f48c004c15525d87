"""A linear probe beside a frozen head, learned after the coefficients: aTLAS with LP++ (arXiv 2404.02285).

logits_l = f . (w_l + a_l h_l), where f is a feature of the composed model and h_l the frozen head's row for class l (of
CLIP: its text embedding times the temperature). From w = 0 and a = 1, which is the head alone, w and a move in turn
down the mean cross-entropy of the few labelled rows, each by the inverse of a bound of its curvature: no step can go
up, and no learning rate is chosen.

Shape legend: ``B`` rows, ``R`` rows that teach, ``W`` width of a feature, ``L`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from multitune.errors import MultituneError


class ProbeHead(nn.Module):
    """The head and its probe; as it is made, the head alone.

    Args:
        head_LW: the frozen head's weights.
    """

    def __init__(self, head_LW: Tensor) -> None:
        super().__init__()
        self.head_LW: Tensor
        self.register_buffer("head_LW", head_LW.detach().clone())
        self.weight_LW = nn.Parameter(torch.zeros_like(self.head_LW))
        self.blend_L = nn.Parameter(torch.ones_like(self.head_LW[:, 0]))

    def forward(self, features_BW: Tensor) -> Tensor:
        """Return logits [B, L]."""
        return features_BW @ (self.weight_LW + self.blend_L[:, None] * self.head_LW).T


@torch.no_grad()
def probe_head(features_RW: Tensor, labels_R: Tensor, head_LW: Tensor, *, iterations: int = 300) -> ProbeHead:
    """Return a head with a probe that has learned from some rows.

    With the Hessian of cross-entropy in the logits at most I / 2, that of the mean over rows is at most
    lambda_max(F^T F / R) / 2 in w, and at most the mean of (f . h_l)^2 / 2 in a_l, class by class.

    Args:
        features_RW: of the model with its coefficients folded in.
        labels_R: 0 to L - 1.
        head_LW: the frozen head's weights.
        iterations: over all rows, each a step of w and one of a.

    Raises:
        MultituneError: no rows, labels that do not fit, features of another width, values that are no numbers.
    """
    rows, classes = len(features_RW), len(head_LW)
    if not rows or rows != len(labels_R) or features_RW.shape[1] != head_LW.shape[1]:
        raise MultituneError(
            f"Features {list(features_RW.shape)}, {len(labels_R)} labels and a head {list(head_LW.shape)} do not fit.",
            "probe head",
            "Give a feature and a label of every row, and a head of the features' width.",
        )
    if not 0 <= int(labels_R.min()) <= int(labels_R.max()) < classes:
        raise MultituneError(
            f"The labels {int(labels_R.min())} to {int(labels_R.max())} are not among {classes} classes.",
            "probe head",
            "Number the classes from 0, in the order of the head.",
        )
    if not (features_RW.isfinite().all() and head_LW.isfinite().all()):
        raise MultituneError("The features or the head are no numbers.", "probe head", "Look for NaN in the model.")
    probe = ProbeHead(head_LW.to(features_RW))
    target_RL = functional.one_hot(labels_R.to(features_RW.device), classes).to(features_RW)
    own_RL = features_RW @ probe.head_LW.T
    curvature = torch.linalg.matrix_norm(features_RW, ord=2).square() / rows / 2
    curvature_L = own_RL.square().mean(0) / 2
    least = torch.finfo(curvature.dtype).tiny
    for _ in range(iterations):
        error_RL = probe(features_RW).softmax(-1) - target_RL
        probe.weight_LW.sub_(error_RL.T @ features_RW / rows / curvature.clamp(min=least))
        error_RL = probe(features_RW).softmax(-1) - target_RL
        probe.blend_L.sub_((error_RL * own_RL).mean(0) / curvature_L.clamp(min=least))
    return probe
