"""What tabular networks are made of: the tokeniser, stacked linear maps, and the towers that end in the targets.

Shape legend: ``B`` rows, ``N`` numeric and ``C`` categorical features, ``d = N + C``, ``e`` width of a token, ``T``
targets, ``G`` maps side by side, ``O`` numbers that leave the network, all targets' together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

TargetKind = Literal["binary", "multiclass", "regression"]
Initialisation = Literal["paper", "torch"]

PAPER_DEVIATION = 0.01  # of every weight outside attention's packed projection; biases are 0


@dataclass(frozen=True)
class NetworkTarget:
    """A column to be learned, as a network sees it.

    Attributes:
        kind: what the numbers mean: a logit, logits of classes, or a standardised value.
        outputs: how many numbers: 1, or the number of classes of a multi-class target.
    """

    kind: TargetKind
    outputs: int = 1


class FeatureTokeniser(nn.Module):
    """Turn a row into one token per feature: ``x_j a_j + b_j`` for numbers, a row of a table for categories.

    All numeric features are one affine map and all categorical ones one table with offsets, so that no Python loop
    runs over features. Numeric tokens come first. There is no position: what tells features apart is their parameters.

    Args:
        numeric: number of numeric features N.
        cardinalities: of every categorical feature, the number of codes.
        width: e.
    """

    offset_C: Tensor

    def __init__(self, numeric: int, cardinalities: Sequence[int], width: int, initialisation: Initialisation) -> None:
        super().__init__()
        self.weight_Ne = nn.Parameter(torch.empty(numeric, width))
        self.bias_Ne = nn.Parameter(torch.empty(numeric, width))
        self.table = nn.Embedding(sum(cardinalities), width)
        offsets = torch.tensor([0, *cardinalities], dtype=torch.long).cumsum(0)[:-1]
        self.register_buffer("offset_C", offsets, persistent=False)
        fill_affine(self.weight_Ne, self.bias_Ne, 1, initialisation)
        nn.init.normal_(self.table.weight, std=PAPER_DEVIATION if initialisation == "paper" else 1.0)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        """Return the tokens, (B, d, e)."""
        token_BNe = torch.addcmul(self.bias_Ne, numeric_BN.unsqueeze(-1), self.weight_Ne)
        if not len(self.offset_C):
            return token_BNe
        token_BCe = self.table(code_BC.long() + self.offset_C)
        return torch.cat((token_BNe, token_BCe), dim=1)

    @torch.no_grad()
    def mean_for_unseen(self) -> None:
        """Give code 0 of every category, which no training row has, the mean of the other codes' vectors."""
        for start, end in itertools.pairwise([*self.offset_C.tolist(), len(self.table.weight)]):
            self.table.weight[start] = self.table.weight[start + 1 : end].mean(dim=0)


def fill_affine(weight: Tensor, bias: Tensor, fan_in: int, initialisation: Initialisation) -> None:
    """Fill an affine map in place: N(0, 0.01^2) and 0 as the paper, or as torch fills a Linear of that fan-in."""
    if initialisation == "paper":
        nn.init.normal_(weight, std=PAPER_DEVIATION)
        nn.init.zeros_(bias)
    else:
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)


def linear(inputs: int, outputs: int, initialisation: Initialisation) -> nn.Linear:
    """Return a Linear filled as said."""
    layer = nn.Linear(inputs, outputs)
    fill_affine(layer.weight, layer.bias, inputs, initialisation)
    return layer


class StackedLinear(nn.Module):
    """G linear maps side by side in one batched product: (B, G, inputs) -> (B, G, outputs)."""

    def __init__(self, maps: int, inputs: int, outputs: int, initialisation: Initialisation) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(maps, outputs))
        fill_affine(self.weight, self.bias, inputs, initialisation)

    def forward(self, x_BGi: Tensor) -> Tensor:
        y_GBo = torch.baddbmm(self.bias.unsqueeze(1), x_BGi.transpose(0, 1), self.weight)
        return y_GBo.transpose(0, 1)


class StackedNorm(nn.Module):
    """Batch normalisation of every map's every unit: (B, G, h) -> (B, G, h)."""

    def __init__(self, maps: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(maps * width)

    def forward(self, x_BGh: Tensor) -> Tensor:
        normed: Tensor = self.norm(x_BGh.flatten(1))
        return normed.view_as(x_BGh)


def stacked_mlp(
    maps: int, widths: Sequence[int], dropout: float, initialisation: Initialisation, *, norm: bool = True
) -> nn.Sequential:
    """Return G multi-layer perceptrons side by side, each [Linear, BatchNorm, ReLU, Dropout] per layer.

    Args:
        widths: of the input and of every layer; one number alone is the identity.
        norm: False leaves the batch normalisation out.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers.append(StackedLinear(maps, inputs, outputs, initialisation))
        if norm:
            layers.append(StackedNorm(maps, outputs))
        layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Towers(nn.Module):
    """One perceptron per target on that target's vector: (B, T, h) -> (B, O).

    The hidden layers of all targets are batched; last layers are batched among targets of as many outputs.

    Args:
        inputs: h.
        hidden: widths of the hidden layers.
        norm: batch normalisation after every hidden layer, as in the perceptron baselines.
    """

    column_O: Tensor

    def __init__(
        self,
        targets: Sequence[NetworkTarget],
        inputs: int,
        hidden: Sequence[int],
        dropout: float,
        initialisation: Initialisation,
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = stacked_mlp(len(targets), (inputs, *hidden), dropout, initialisation, norm=norm)
        outputs = [target.outputs for target in targets]
        groups = [[t for t, o in enumerate(outputs) if o == size] for size in sorted(set(outputs))]
        width = (inputs, *hidden)[-1]
        self.last = nn.ModuleList(
            StackedLinear(len(group), width, outputs[group[0]], initialisation) for group in groups
        )
        for place, group in enumerate(groups):
            self.register_buffer(f"targets_{place}", torch.tensor(group), persistent=False)
        starts = torch.tensor([0, *outputs]).cumsum(0)
        grouped = [int(starts[t]) + o for group in groups for t in group for o in range(outputs[t])]
        # grouped[i] is the place, in the order of the targets, of the i-th number as the groups give them
        self.register_buffer("column_O", torch.tensor(grouped).argsort(), persistent=False)

    def forward(self, x_BTh: Tensor) -> Tensor:
        hidden_BTh = self.hidden(x_BTh)
        parts = [
            last(hidden_BTh[:, self.get_buffer(f"targets_{place}")]).flatten(1) for place, last in enumerate(self.last)
        ]
        return torch.cat(parts, dim=1).index_select(1, self.column_O)


def output_slices(targets: Sequence[NetworkTarget]) -> list[slice]:
    """Return where every target's numbers stand among the O outputs."""
    slices, start = [], 0
    for target in targets:
        slices.append(slice(start, start + target.outputs))
        start += target.outputs
    return slices
