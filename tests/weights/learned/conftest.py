"""A small model with a frozen head, task vectors of it, and rows to learn from; names of blocks and layers are real."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from multitune.weights.learned.vectors import DenseVector, difference


class SmallModel(nn.Module):
    """Two residual layers between an inlet and a head; a buffer that no vector may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@dataclass
class Small:
    """A base, two fine-tuned copies whose heads are the base's, their vectors, and rows."""

    model: SmallModel
    tuned: list[SmallModel]
    vectors: list[DenseVector]
    inputs: Tensor
    labels: Tensor

    def loss(self, forward) -> Tensor:
        """Cross-entropy on all rows."""
        return functional.cross_entropy(forward(self.inputs), self.labels)


def small(dtype: torch.dtype = torch.float64, vectors: int = 2) -> Small:
    """Return the model and its vectors in a type."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallModel().to(dtype)
    tuned = []
    for _ in range(vectors):
        one = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if not name.startswith("head"):
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(0.3 * noise.to(dtype))
        tuned.append(one)

    def body(module: SmallModel) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("head")}

    rows = torch.randn(20, 4, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(3, (20,), generator=generator)
    return Small(model, tuned, [difference(body(model), body(one)) for one in tuned], rows, labels)


@pytest.fixture
def bench() -> Small:
    return small()
