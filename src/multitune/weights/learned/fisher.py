"""Fisher merging (arXiv 2111.09832): every entry of the weights averaged by how much each model's predictions need it.

theta* = sum_i w_i F_i theta_i / sum_i w_i F_i, entry by entry, with the diagonal Fisher information
F_i = E_x E_{y ~ p(y | x; theta_i)} (d log p(y | x; theta_i) / d theta_i)^2.

Measured batch by batch and averaged model by model: beside one model, its information and two sums are held, however
many rows and models there are.

Shape legend: ``B`` rows, ``L`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.tasks import Logits, called
from multitune.weights.learned.vectors import exact, require_same_tensors

State = Mapping[str, Tensor]


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    logits: Logits = called,
    *,
    labels: Literal["expected", "sampled"] = "expected",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of a model's parameters, by name, in float32 (float64 for float64 ones).

    Labels are the model's own, never the data's. ``expected`` takes the expectation over all classes of single rows: a
    backward pass per row and class. ``sampled`` draws one class per row and takes one backward pass per batch: what is
    drawn from the prediction has a gradient of mean zero, so that those of different rows are uncorrelated and the
    square of their sum has the expectation of the sum of their squares (the estimator of arXiv 2305.14342).

    Args:
        model: a fine-tuned model; a parameter that does not require gradients is left out.
        batches: inputs of some rows each; with ``expected`` of one row.
        logits: (model, inputs) -> [B, L]: predictions that are independent given their inputs, such as one per row, or
            one per answered token. One output, L = 1, is the mean of a normal distribution of variance 1.
        seed: of the drawn classes.

    Returns:
        The mean over predictions.

    Raises:
        MultituneError: no rows, more than one with ``expected``, a gradient that is no number.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p, dtype=exact(p.dtype)) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    count = 0
    for inputs in batches:
        logits_BL = logits(model, inputs)
        if logits_BL.ndim != 2 or (labels == "expected" and len(logits_BL) != 1):
            raise MultituneError(
                f"Fisher information needs logits of shape [{'1' if labels == 'expected' else 'rows'}, classes], "
                f"not {list(logits_BL.shape)}.",
                "fisher",
                "Give rows one by one, or labels='sampled', which takes batches.",
            )
        terms = _expected(logits_BL) if labels == "expected" else [(_drawn(logits_BL, generator), 1.0)]
        waiting = None
        for term in terms:
            if waiting is not None:
                _add_square(fisher, parameters, *waiting, again=True)
            waiting = term
        if waiting is not None:
            _add_square(fisher, parameters, *waiting, again=False)
        count += len(logits_BL)
    for module, mode in training:
        module.training = mode
    if count == 0:
        raise MultituneError("There is no row to measure Fisher information on.", "fisher", "Give at least one.")
    if odd := [name for name, values in fisher.items() if not torch.isfinite(values).all()]:
        raise MultituneError("The Fisher information is no number.", odd[0], "Look for NaN in the weights and rows.")
    return {name: values.div_(count) for name, values in fisher.items()}


def _expected(logits_BL: Tensor) -> Iterator[tuple[Tensor, float]]:
    """Yield for every class of one row its log-probability [] and its probability."""
    if logits_BL.shape[1] == 1:
        yield logits_BL[0, 0], 1.0
        return
    log_p_L = logits_BL[0].log_softmax(-1)
    yield from zip(log_p_L, log_p_L.detach().exp().tolist(), strict=True)


def _drawn(logits_BL: Tensor, generator: torch.Generator) -> Tensor:
    """Return a number [] with the gradient of the log-density of one drawn answer per row, summed over the rows."""
    if logits_BL.shape[1] == 1:
        noise_B1 = torch.randn(logits_BL.shape, generator=generator).to(logits_BL)
        return (noise_B1 * logits_BL).sum()
    log_p_BL = logits_BL.log_softmax(-1)
    drawn_B1 = torch.multinomial(log_p_BL.detach().exp().cpu().double(), 1, generator=generator)
    return log_p_BL.gather(1, drawn_B1.to(log_p_BL.device)).sum()


def _add_square(
    fisher: dict[str, Tensor], parameters: Mapping[str, nn.Parameter], term: Tensor, weight: float, *, again: bool
) -> None:
    """Add weight * (d term / d parameter)^2; ``again``: whether the graph is needed once more."""
    slopes = torch.autograd.grad(term, [*parameters.values()], retain_graph=again, allow_unused=True)
    for name, slope in zip(parameters, slopes, strict=True):
        if slope is not None:
            fisher[name].add_(slope.to(fisher[name].dtype).square(), alpha=weight)


class FisherAverage:
    """The Fisher-weighted average of models that are given one after the other.

    Args:
        floor: below it no information falls, so that entries that no model needs are plainly averaged.
        normalise: divide each model's information by its Euclidean norm first, as the authors do where models were
            measured on losses of different scale.

    Attributes:
        mean_weights: of every tensor the mean over its entries of w F, model after model.
    """

    def __init__(self, *, floor: float = 1e-6, normalise: bool = True) -> None:
        self._floor = floor
        self._normalise = normalise
        self._above: dict[str, Tensor] = {}
        self._below: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self.mean_weights: dict[str, list[float]] = {}

    def add(self, state: State, fisher: State, weight: float = 1.0) -> None:
        """Take in one model; nothing of it is kept but its part of the sums.

        Args:
            state: the model's weights; all models' under the same names.
            fisher: its information; a tensor that has none counts by the weight alone.
            weight: w, positive; weights may have any sum.

        Raises:
            MultituneError: other names or shapes than the first model's.
        """
        if self._first:
            require_same_tensors(self._first, state)
        norm = _norm(fisher) if self._normalise else 1.0
        for name, tensor in state.items():
            if not self._first.get(name, tensor).is_floating_point():
                self._first.setdefault(name, tensor.detach().clone())
                continue
            kind = exact(tensor.dtype)
            # an empty tensor of the first one's type tells names, shapes and types without holding weights
            self._first.setdefault(name, tensor.new_empty(()).expand(tensor.shape))
            information = fisher.get(name)
            if information is None:
                needed = torch.full_like(tensor, weight, dtype=kind)
            else:
                needed = (information.to(tensor.device, kind) / norm).clamp_(min=self._floor).mul_(weight)
            self.mean_weights.setdefault(name, []).append(float(needed.mean()))
            pulled = needed * tensor.detach()
            for sums, part in ((self._above, pulled), (self._below, needed)):
                sums[name] = sums[name].add_(part) if name in sums else part

    def result(self) -> dict[str, Tensor]:
        """Return the average, in the first model's types; the sums are used up."""
        merged = {}
        for name, first in self._first.items():
            if name not in self._above:
                merged[name] = first
                continue
            merged[name] = self._above.pop(name).div_(self._below.pop(name)).to(first.dtype)
        return merged


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
        floor, normalise: see ``FisherAverage``.

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
    average = FisherAverage(floor=floor, normalise=normalise)
    for state, fisher, weight in zip(states, fishers, share, strict=True):
        average.add(state, fisher, weight)
    return average.result()


def _norm(fisher: State) -> float:
    norm = math.sqrt(math.fsum(float(values.double().square().sum()) for values in fisher.values()))
    return norm or 1.0
