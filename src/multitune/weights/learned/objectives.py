"""What composed models are asked for: losses as functions of logits and embeddings, and the penalty on coefficients.

Shape legend: ``B`` rows, ``L`` classes, ``W`` width of an embedding, ``N`` task vectors, ``C`` coefficients of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from multitune.errors import MultituneError

UNTRUSTED = -1
"""The trusted label of a row that has none."""


def cross_entropy(logits_BL: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy over the rows, in nats []."""
    return functional.cross_entropy(logits_BL, labels_B)


def entropy(logits_BL: Tensor) -> Tensor:
    """Mean entropy of the predictions over the rows, in nats []: AdaMerging's objective (arXiv 2310.02575)."""
    return _entropy_B(logits_BL).mean()


def reliable_entropy(logits_BL: Tensor, margin: float = 0.4) -> Tensor:
    """Mean entropy over the rows whose entropy is below margin * ln L []; 0 with a zero gradient when none is.

    The reliable half of SAR (arXiv 2302.12400); the other half, sharpness, is ``LearningConfig.sharpness_radius``.
    """
    entropy_B = _entropy_B(logits_BL)
    reliable_B = entropy_B.detach() < margin * math.log(logits_BL.shape[-1])
    return (entropy_B * reliable_B).sum() / reliable_B.sum().clamp(min=1)


def _entropy_B(logits_BL: Tensor) -> Tensor:
    log_p_BL = logits_BL.log_softmax(-1)
    return -(log_p_BL.exp() * log_p_BL).sum(-1)


def simclr(one_BW: Tensor, other_BW: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrastive loss of two views of the same rows, in nats [] (NT-Xent, arXiv 2002.05709).

    Every embedding has to find its other view among all 2 B - 1 others by cosine similarity.

    Raises:
        MultituneError: fewer than two rows, which leave nothing to tell apart.
    """
    rows = len(one_BW)
    if rows < 2:
        raise MultituneError(f"{rows} row cannot be contrasted.", "simclr", "Give batches of two rows or more.")
    views_VW = functional.normalize(torch.cat([one_BW, other_BW]), dim=-1)
    similarity_VV = views_VW @ views_VW.T / temperature
    similarity_VV = similarity_VV.masked_fill(torch.eye(2 * rows, dtype=torch.bool, device=views_VW.device), -math.inf)
    partner_V = torch.arange(2 * rows, device=views_VW.device).roll(rows)
    return functional.cross_entropy(similarity_VV, partner_V)


def trusted_rows(probability_BL: Tensor, most: int = 100) -> tuple[Tensor, Tensor]:
    """Return rows [T] and labels [T] that UFM trusts: per class its min(B / L, most) most probable rows.

    A row that two classes claim is trusted for the class that gives it the higher probability.
    """
    rows, classes = probability_BL.shape
    per_class = min(rows // classes, most)
    top = probability_BL.topk(per_class, dim=0)  # [per_class, L]
    best: dict[int, tuple[float, int]] = {}
    for label in range(classes):
        for row, probability in zip(top.indices[:, label].tolist(), top.values[:, label].tolist(), strict=True):
            best[row] = max(best.get(row, (-1.0, 0)), (probability, -label))
    found = sorted(best)
    return torch.tensor(found, dtype=torch.long), torch.tensor([-best[row][1] for row in found], dtype=torch.long)


def ufm(weak_BL: Tensor, strong_BL: Tensor, trusted_B: Tensor, threshold: float, exponent: float = 0.5) -> Tensor:
    """Unsupervised FixMatch of aTLAS (arXiv 2407.02880), as its text defines it; mean over the rows, in nats [].

    A trusted row costs the cross-entropy of its strong view against its trusted label. Any other row costs
    -1[max sigma(y) > w] sigma(y)^T log y', where y and y' are the probabilities of its weak and strong view and
    sigma(y) = y^e / sum y^e; no gradient flows through the weak view.

    Args:
        weak_BL, strong_BL: logits of the two views.
        trusted_B: labels; ``UNTRUSTED`` where there is none.
        threshold: w, which the paper raises from 0.9 to 1 in the course of learning.
        exponent: e. The paper's 0.5 flattens; FixMatch's sharpening at temperature 0.5 would be 2.
    """
    log_p_BL = strong_BL.log_softmax(-1)
    sharpened_BL = (exponent * weak_BL.detach().log_softmax(-1)).softmax(-1)
    confident_B = sharpened_BL.amax(-1) > threshold
    pseudo_B = -(sharpened_BL * log_p_BL).sum(-1) * confident_B
    is_trusted_B = trusted_B != UNTRUSTED
    labelled_B = -log_p_BL.gather(-1, trusted_B.clamp(min=0)[:, None]).squeeze(-1)
    return torch.where(is_trusted_B, labelled_B, pseudo_B).mean()


def regulariser(lam_NC: Tensor, p: int, strength: float = 0.5) -> Tensor:
    """Return strength * mean over blocks of the Lp norm of their coefficients across task vectors []."""
    return strength * torch.linalg.vector_norm(lam_NC, ord=p, dim=0).mean()
