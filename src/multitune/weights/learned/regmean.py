"""RegMean (arXiv 2212.09849): linear layers merged so that the outputs of all models are kept in the least squares.

W* = (sum_i G_i)^-1 sum_i G_i W_i, where G_i = X_i^T X_i are the inner products of the inputs of model i's layer, with
off-diagonal entries times alpha. All that is no weight of a linear layer is averaged.

Shape legend: ``M`` models, ``I`` inputs and ``O`` outputs of a layer, ``R`` rows (tokens) that reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.vectors import exact, require_same_tensors

State = Mapping[str, Tensor]


def gram_matrices(
    model: nn.Module,
    batches: Iterable[Any],
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs),
) -> dict[str, Tensor]:
    """Return X^T X [I, I] of the inputs of every linear layer, by the name of its weight.

    In float32 (float64 for float64 layers), divided by the number of rows, so that models measured on more rows do not
    count for more. A layer that no batch reaches is left out, and so is what is linear under another class (GPT-2's
    Conv1D).

    Args:
        batches: a few hundred rows are enough; without padding, whose positions would count as rows.
        call: (model, batch) runs the model.

    Raises:
        MultituneError: no batches, no linear layer, inputs that are no numbers.
    """
    grams: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def measure(weight: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_RI = inputs[0].detach().flatten(0, -2)
        x_RI = x_RI.to(exact(x_RI.dtype))
        grams[weight] = x_RI.T @ x_RI + grams.get(weight, 0.0)
        rows[weight] = rows.get(weight, 0) + len(x_RI)

    layers = {
        f"{name}.weight" if name else "weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    handles = [layer.register_forward_pre_hook(partial(measure, weight)) for weight, layer in layers.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for inputs in batches:
                call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not grams:
        raise MultituneError(
            "No batch reached a linear layer.", "regmean", "Give batches, and a model with linear layers."
        )
    if odd := [name for name, gram in grams.items() if not torch.isfinite(gram).all()]:
        raise MultituneError("The inputs of a layer are no numbers.", odd[0], "Look for NaN in the weights and rows.")
    return {name: gram / rows[name] for name, gram in grams.items()}


class RegMeanAverage:
    """The regression mean of models that are given one after the other.

    Held are, for every layer, the sum of X^T X [I, I], what it pulls towards [I, O] and the sum of the weights, in
    float64 (the sum of the matrices is often nearly singular), however many models there are.

    Args:
        alpha: see ``regmean``.
    """

    def __init__(self, alpha: float = 0.9) -> None:
        self._alpha = alpha
        self._models = 0
        self._first: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._grams: dict[str, Tensor] = {}
        self._pulled: dict[str, Tensor] = {}

    def add(self, state: State, grams: State) -> None:
        """Take in one model; nothing of it is kept but its part of the sums.

        Args:
            state: the model's weights; all models' under the same names.
            grams: X^T X, see ``gram_matrices``; a weight is merged by them where all models have it.

        Raises:
            MultituneError: other names or shapes than the first model's.
        """
        if self._models:
            require_same_tensors(self._first, state)
            self._grams = {name: gram for name, gram in self._grams.items() if name in grams}
        for name, tensor in state.items():
            if not self._first.get(name, tensor).is_floating_point():
                self._first.setdefault(name, tensor.detach().clone())
                continue
            # an empty tensor of the first one's type tells names, shapes and types without holding weights
            self._first.setdefault(name, tensor.new_empty(()).expand(tensor.shape))
            regressed = name in grams and (self._models == 0 or name in self._grams)
            weight = tensor.detach().double() if regressed else tensor.detach().to(exact(tensor.dtype))
            self._sums[name] = self._sums[name] + weight if name in self._sums else weight
            if regressed:
                shrunk_II = _shrunk(grams[name].to(weight.device, torch.float64), self._alpha)
                for sums, part in ((self._grams, shrunk_II), (self._pulled, shrunk_II @ weight.T)):
                    sums[name] = sums[name].add_(part) if name in sums else part
        self._models += 1

    def result(self) -> dict[str, Tensor]:
        """Return the merged weights, in the first model's types; the sums are used up."""
        merged = {}
        for name, first in self._first.items():
            if name not in self._sums:
                merged[name] = first
                continue
            mean = self._sums.pop(name) / self._models
            if name in self._grams:
                gram_II, mean_IO = self._grams.pop(name), mean.double().T
                # relative to the mean, which then stays wherever the inputs of all models say nothing
                mean = (mean_IO + _solved(gram_II, self._pulled.pop(name) - gram_II @ mean_IO)).T.contiguous()
            merged[name] = mean.to(first.dtype)
        return merged


def regmean(states: Sequence[State], grams: Sequence[State], alpha: float = 0.9) -> dict[str, Tensor]:
    """Return the merged weights.

    Args:
        states: the models' weights, under the same names.
        grams: X^T X of each, see ``gram_matrices``; a weight is merged by them where all models have it.
        alpha: what off-diagonal entries are scaled by, 0 to 1. Below 1 the solution exists whatever the data: the paper
            takes 0.9, and 0.1 for T5. 0 weighs each input alone.

    Raises:
        MultituneError: no models, other names or shapes, counts that differ, alpha out of range.
    """
    if not states or len(states) != len(grams) or not 0 <= alpha <= 1:
        raise MultituneError(
            f"{len(states)} models, {len(grams)} measurements and alpha {alpha:g} do not fit.",
            "regmean",
            "Give one measurement per model, and alpha from 0 to 1.",
        )
    average = RegMeanAverage(alpha)
    for state, of_model in zip(states, grams, strict=True):
        average.add(state, of_model)
    return average.result()


def _solved(gram_II: Tensor, pulled_IO: Tensor) -> Tensor:
    """Return gram^-1 pulled, and the smallest least-squares solution where inputs are silent or repeat one another."""
    lower_II, failed = torch.linalg.cholesky_ex(gram_II)
    pivot_I = lower_II.diagonal().square()
    if not failed and bool(pivot_I.min() > 1e-10 * pivot_I.max()):
        return torch.cholesky_solve(pulled_IO, lower_II)
    # by singular values, which take minutes for a few thousand inputs; on the CPU, as GPUs have no such solver
    return torch.linalg.lstsq(gram_II.cpu(), pulled_IO.cpu(), driver="gelsd").solution.to(gram_II)


def _shrunk(gram_II: Tensor, alpha: float) -> Tensor:
    return alpha * gram_II + (1 - alpha) * torch.diag(gram_II.diagonal())
