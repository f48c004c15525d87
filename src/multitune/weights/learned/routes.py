"""Three ways to run a composed model and to differentiate its loss in the coefficients.

``Streamed`` holds one copy of the weights beside the base, moves it in place, lets an ordinary backward pass find the
gradients, and then reads every task vector once for the inner products: memory does not grow with the number of
vectors, and a step costs one reading of them for the gradient and one for the move. ``Autograd`` differentiates through
the composition. ``Linearised`` replaces the model by its first-order expansion at the base, one Jacobian-vector product
per call.

Shape legend: ``N`` task vectors, ``C`` coefficients of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.composition import Composition
from multitune.weights.learned.config import Route

Forward = Callable[..., Any]
"""Calls the composed model as one would call the model itself."""

Loss = Callable[[Forward], Tensor]
"""A scalar from calls of the composed model."""


class Composed(Protocol):
    """A model that is composed at coefficients [N, C] and differentiated in them."""

    def at(self, lam_NC: Tensor) -> Forward:
        """Return the model composed at these coefficients, until they are next changed."""

    def gradient(self, lam_NC: Tensor, losses: Sequence[Loss]) -> tuple[float, Tensor]:
        """Return the sum of the losses at these coefficients, and its gradient [N, C]."""


class Streamed:
    """One copy of the weights, moved in place; see the module."""

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self._model = model
        self._composition = composition
        self._parameters = {name: p for name, p in model.named_parameters() if name in composition.base}
        self._at_NC = composition.start()

    def at(self, lam_NC: Tensor) -> Forward:
        """Move the weights to these coefficients.

        The move is added to where they are; each adds an error of one float32 rounding. Weights of fewer bits would
        lose small moves, and are composed anew from the base.
        """
        change_NC = lam_NC.detach() - self._at_NC
        if change_NC.any():
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    if parameter.dtype in (torch.float32, torch.float64):
                        self._composition.add_to(name, parameter, change_NC)
                    else:
                        parameter.copy_(self._composition.tensor(name, lam_NC.detach()))
        self._at_NC = lam_NC.detach().clone()
        return self._model

    def gradient(self, lam_NC: Tensor, losses: Sequence[Loss]) -> tuple[float, Tensor]:
        """Run one backward pass per loss, then read every task vector once."""
        forward = self.at(lam_NC)
        total = 0.0
        for loss in losses:
            value = _checked(loss(forward))
            value.backward()
            total += float(value.detach())
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        gradient_NC = self._composition.inner_products(gradients)
        for parameter in self._parameters.values():
            parameter.grad = None
        return total, gradient_NC


class Autograd:
    """The composition as part of the graph: all task vectors are held, those of one tensor several times."""

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self._model = model
        self._composition = composition
        self._likes = {name: p.detach() for name, p in model.named_parameters() if name in composition.base}

    def at(self, lam_NC: Tensor) -> Forward:
        """Compose all tensors at these coefficients."""
        theta = {name: self._composition.tensor(name, lam_NC).to(like) for name, like in self._likes.items()}
        return lambda *args, **kwargs: torch.func.functional_call(self._model, theta, args, kwargs)

    def gradient(self, lam_NC: Tensor, losses: Sequence[Loss]) -> tuple[float, Tensor]:
        """Differentiate through the composition."""
        return _differentiated(self.at, self._composition, lam_NC, losses)


class Linearised:
    """f(x; base) + (theta(lam) - base)^T grad f(x; base): affine in the coefficients.

    Task vectors are meant to come from fine-tuning in the tangent space too. Attention needs an implementation that has
    forward derivatives (transformers: ``attn_implementation="eager"``).
    """

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self._model = model
        self._composition = composition
        self._likes = {name: p.detach() for name, p in model.named_parameters() if name in composition.base}

    def at(self, lam_NC: Tensor) -> Forward:
        """Return the expansion, to be called as the model; its outputs are those of the model, moved."""
        base = {name: tensor.to(self._likes[name]) for name, tensor in self._composition.base.items()}
        offset = {name: self._composition.tensor(name, lam_NC).to(base[name]) - base[name] for name in base}

        def forward(*args: Any, **kwargs: Any) -> Any:
            def outputs(theta: dict[str, Tensor]) -> Any:
                return torch.func.functional_call(self._model, theta, args, kwargs)

            moved: tuple[Any, ...] = torch.func.jvp(outputs, (base,), (offset,))
            value, slope = moved
            return torch.utils._pytree.tree_map(torch.add, value, slope)

        return forward

    def gradient(self, lam_NC: Tensor, losses: Sequence[Loss]) -> tuple[float, Tensor]:
        """Differentiate through the Jacobian-vector product."""
        return _differentiated(self.at, self._composition, lam_NC, losses)


ROUTES: dict[Route, Callable[[nn.Module, Composition], Composed]] = {
    "streamed": Streamed,
    "autograd": Autograd,
    "linearised": Linearised,
}


@contextmanager
def routed(route: Route, model: nn.Module, composition: Composition) -> Iterator[Composed]:
    """Lend a model to a route: in evaluation mode, nothing but the composed tensors asking for gradients.

    On leaving, the model has its weights, its modes and its flags back, bit for bit, whatever happened; gradients that
    it held of composed tensors are gone.

    Raises:
        MultituneError: the model holds other weights than the composition's base.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    moved = {name: p for name, p in model.named_parameters() if name in composition.base}
    weights = {name: parameter.data for name, parameter in moved.items()}
    for name, weight in weights.items():
        base = composition.base[name]
        if base.data_ptr() != weight.data_ptr() and not torch.equal(base.to(weight), weight):
            raise MultituneError(
                f"The model's '{name}' is not that of the base over which the task vectors were composed.",
                "model",
                "Load the pretrained model again, or compose over this one.",
            )
    try:
        model.eval().requires_grad_(False)
        for name, parameter in moved.items() if route == "streamed" else ():
            parameter.grad = None
            parameter.requires_grad_(True)
            if composition.base[name].data_ptr() == parameter.data_ptr():
                parameter.data = parameter.data.clone()  # vectors may subtract these very weights when they are read
        yield ROUTES[route](model, composition)
    finally:
        for name, parameter in moved.items() if route == "streamed" else ():
            parameter.grad = None
            if parameter.data_ptr() == weights[name].data_ptr():
                parameter.data.copy_(composition.base[name])
            parameter.data = weights[name]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _differentiated(
    at: Callable[[Tensor], Forward], composition: Composition, lam_NC: Tensor, losses: Sequence[Loss]
) -> tuple[float, Tensor]:
    leaf_NC = lam_NC.detach().clone().requires_grad_()
    forward = at(leaf_NC)
    total = torch.stack([_checked(loss(forward)) for loss in losses]).sum()
    total.backward()  # not ``grad``: what is learned beside the coefficients gets its gradient too
    gradient_NC = torch.zeros_like(leaf_NC) if leaf_NC.grad is None else leaf_NC.grad
    if composition.chosen_NC is not None:
        gradient_NC = gradient_NC * composition.chosen_NC
    return float(total.detach()), gradient_NC


def _checked(loss: Tensor) -> Tensor:
    if loss.ndim or not loss.requires_grad:
        raise MultituneError(
            f"A loss of shape {list(loss.shape)} that does"
            f"{'' if loss.requires_grad else ' not'} depend on composed tensors cannot be learned from.",
            "loss",
            "Return one number, from calls of the composed model that is given to the loss.",
        )
    return loss
