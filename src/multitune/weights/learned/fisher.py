"""Fisher merging (arXiv 2111.09832): every entry of the weights averaged by how much each model's predictions need it.

theta* = sum_i w_i F_i theta_i / sum_i w_i F_i, entry by entry, with the diagonal Fisher information
F_i = E_x E_{y ~ p(y | x; theta_i)} (d log p(y | x; theta_i) / d theta_i)^2.

Shape legend: ``B`` rows, ``L`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.tasks import Logits, called
from multitune.weights.learned.vectors import exact, require_same_tensors

State = Mapping[str, Tensor]


def diagonal_fisher(
    model: nn.Module,
    rows: Iterable[Any],
    logits: Logits = called,
    *,
    labels: Literal["expected", "sampled"] = "expected",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of a model's parameters, by name, in float32 (float64 for float64 ones).

    Labels are the model's own, never the data's: the expectation over all classes, one backward pass each, or one class
    drawn from the prediction, for many classes. Squares are of single rows' gradients, so each item of ``rows`` is one
    row's inputs (a batch of one): a larger batch would square the sum.

    Args:
        model: a fine-tuned model; a parameter that does not require gradients is left out.
        logits: (model, inputs) -> [1, L].

    Raises:
        MultituneError: no rows, a batch of more than one, a gradient that is no number.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p, dtype=exact(p.dtype)) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    count = 0
    for inputs in rows:
        logits_BL = logits(model, inputs)
        if logits_BL.ndim != 2 or len(logits_BL) != 1:
            raise MultituneError(
                f"Fisher information needs the logits of one row, not {list(logits_BL.shape)}.",
                "fisher",
                "Give rows one by one, and logits of shape [1, classes].",
            )
        log_p_L = logits_BL[0].log_softmax(-1)
        p_L = log_p_L.detach().exp()
        if labels == "sampled":
            drawn = int(torch.multinomial(p_L.cpu().double(), 1, generator=generator))
            weighted = [(drawn, 1.0)]
        else:
            weighted = list(enumerate(p_L.tolist()))
        for number, (label, weight) in enumerate(weighted):
            slopes = torch.autograd.grad(
                log_p_L[label], [*parameters.values()], retain_graph=number + 1 < len(weighted), allow_unused=True
            )
            for name, slope in zip(parameters, slopes, strict=True):
                if slope is not None:
                    fisher[name].add_(slope.to(fisher[name].dtype).square(), alpha=weight)
        count += 1
    for module, mode in training:
        module.training = mode
    if count == 0:
        raise MultituneError("There is no row to measure Fisher information on.", "fisher", "Give at least one.")
    if odd := [name for name, values in fisher.items() if not torch.isfinite(values).all()]:
        raise MultituneError("The Fisher information is no number.", odd[0], "Look for NaN in the weights and rows.")
    return {name: values / count for name, values in fisher.items()}


def fisher_merge(
    states: Sequence[State],
    fishers: Sequence[State],
    weights: Sequence[float] | None = None,
    *,
    floor: float = 1e-6,
    normalise: bool = True,
) -> dict[str, Tensor]:
    """Return the Fisher-weighted average of models.

    Args:
        states: the models' weights, under the same names.
        fishers: their diagonal Fisher information; a tensor that none of them has is averaged by the weights alone.
        weights: w, positive and of any sum; None: equal.
        floor: below it no information falls, so that entries that no model needs are plainly averaged.
        normalise: divide each model's information by its Euclidean norm first, as the authors do where models were
            measured on losses of different scale.

    Raises:
        MultituneError: no models, other names or shapes, counts that differ, weights that are not positive.
    """
    share = list(weights or [1.0] * len(states))
    if not states or not len(states) == len(fishers) == len(share) or min(share) <= 0:
        raise MultituneError(
            f"{len(states)} models, {len(fishers)} measurements and the weights {share} do not fit.",
            "fisher",
            "Give one measurement and one positive weight per model.",
        )
    for state in states[1:]:
        require_same_tensors(states[0], state)
    norms = [_norm(fisher) if normalise else 1.0 for fisher in fishers]
    return {
        name: _merged([state[name] for state in states], [f.get(name) for f in fishers], norms, share, floor)
        for name in states[0]
    }


def _merged(
    tensors: list[Tensor], fishers: list[Tensor | None], norms: list[float], share: list[float], floor: float
) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    kind = exact(tensors[0].dtype)
    above, below = torch.zeros_like(tensors[0], dtype=kind), torch.zeros_like(tensors[0], dtype=kind)
    for tensor, fisher, norm, weight in zip(tensors, fishers, norms, share, strict=True):
        needed = torch.ones_like(below) if fisher is None else (fisher.to(below) / norm).clamp(min=floor)
        above += weight * needed * tensor.to(kind)
        below += weight * needed
    return (above / below).to(tensors[0].dtype)


def _norm(fisher: State) -> float:
    norm = math.sqrt(math.fsum(float(values.double().square().sum()) for values in fisher.values()))
    return norm or 1.0
