"""What MultiTab-Net is measured against: perceptrons that share at the bottom, by experts, or not at all.

All of them read the same tokens, flattened. Experts, gates and towers are stacked: no Python loop over targets or
experts. Sources: MMoE (KDD 2018), PLE (RecSys 2020), STEM (AAAI 2024), as the paper of MultiTab compares with them.

Shape legend: ``B`` rows, ``T`` targets, ``M`` experts in all, ``n`` private experts per target, ``s`` shared ones,
``h`` width of an expert's output, ``F = d e`` width of the flattened tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multitune.tabular.network_layers import (
    FeatureTokeniser,
    Initialisation,
    NetworkTarget,
    StackedLinear,
    Towers,
    linear,
    stacked_mlp,
)


@dataclass(frozen=True)
class BaselineShape:
    """The size of a baseline; the defaults are the paper's.

    Attributes:
        hidden: layers of the shared perceptron, and of every expert.
        tower: hidden layers of every target's own perceptron.
        experts: of MMoE.
        shared_experts, private_experts, layers: of PLE and STEM; private ones per target.
    """

    embed_dim: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    experts: int = 8
    shared_experts: int = 4
    private_experts: int = 2
    layers: int = 1
    dropout: float = 0.0
    initialisation: Initialisation = "paper"


class SharedBottom(nn.Module):
    """One perceptron for all targets, and a tower for each. With one target it is the single-task perceptron."""

    def __init__(
        self, numeric: int, cardinalities: Sequence[int], targets: Sequence[NetworkTarget], shape: BaselineShape
    ) -> None:
        super().__init__()
        self.tokeniser = FeatureTokeniser(numeric, cardinalities, shape.embed_dim, shape.initialisation)
        width = (numeric + len(cardinalities)) * shape.embed_dim
        self.bottom = stacked_mlp(1, (width, *shape.hidden), shape.dropout, shape.initialisation)
        self.target_count = len(targets)
        self.towers = _towers(targets, (width, *shape.hidden)[-1], shape)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        flat_BF = self.tokeniser(numeric_BN, code_BC).flatten(1)
        bottom_B1h = self.bottom(flat_BF.unsqueeze(1))
        outputs: Tensor = self.towers(bottom_B1h.expand(-1, self.target_count, -1))
        return outputs


class MMoE(nn.Module):
    """Multi-gate mixture of experts: tower_t(sum_m gate_tm f_m(E)), gate_t = softmax(G_t E)."""

    def __init__(
        self, numeric: int, cardinalities: Sequence[int], targets: Sequence[NetworkTarget], shape: BaselineShape
    ) -> None:
        super().__init__()
        self.tokeniser = FeatureTokeniser(numeric, cardinalities, shape.embed_dim, shape.initialisation)
        width = (numeric + len(cardinalities)) * shape.embed_dim
        self.shape, self.target_count = shape, len(targets)
        self.experts = stacked_mlp(shape.experts, (width, *shape.hidden), shape.dropout, shape.initialisation)
        self.gates = linear(width, len(targets) * shape.experts, shape.initialisation)
        self.towers = _towers(targets, (width, *shape.hidden)[-1], shape)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        flat_BF = self.tokeniser(numeric_BN, code_BC).flatten(1)
        expert_BMh = self.experts(flat_BF.unsqueeze(1).expand(-1, self.shape.experts, -1))
        gate_BTM = self.gates(flat_BF).unflatten(1, (self.target_count, -1)).softmax(-1)
        outputs: Tensor = self.towers(gate_BTM @ expert_BMh)
        return outputs


class ExpertLayer(nn.Module):
    """Private experts of every target, shared ones, and the gates that mix them into the targets' and a shared state.

    Args:
        inputs: width of every state.
        crossing: True lets a target's gate mix the experts of all targets, as STEM does, with no gradient to those of
            other targets; False lets it mix its own and the shared ones, as PLE does.
    """

    own_TM: Tensor

    def __init__(self, targets: int, inputs: int, shape: BaselineShape, *, crossing: bool) -> None:
        super().__init__()
        self.targets, self.crossing = targets, crossing
        self.private_count, self.shared_count = shape.private_experts, shape.shared_experts
        private, shared = targets * shape.private_experts, shape.shared_experts
        widths = (inputs, *shape.hidden)
        self.private = stacked_mlp(private, widths, shape.dropout, shape.initialisation)
        self.shared = stacked_mlp(shared, widths, shape.dropout, shape.initialisation)
        mixed = private + shared if crossing else shape.private_experts + shared
        self.target_gates = StackedLinear(targets, inputs, mixed, shape.initialisation)
        self.shared_gate = linear(inputs, private + shared, shape.initialisation)
        owner_M = torch.arange(targets).repeat_interleave(shape.private_experts)
        own_TM = torch.cat((owner_M == torch.arange(targets)[:, None], torch.ones(targets, shared).bool()), dim=1)
        self.register_buffer("own_TM", own_TM, persistent=False)

    def forward(self, state_BTF: Tensor, shared_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states: of the targets, (B, T, h), and the shared one, (B, h)."""
        private_BMh = self.private(state_BTF.repeat_interleave(self.private_count, dim=1))
        common_Bsh = self.shared(shared_BF.unsqueeze(1).expand(-1, self.shared_count, -1))
        expert_BMh = torch.cat((private_BMh, common_Bsh), dim=1)
        gate_BTM = self.target_gates(state_BTF).softmax(-1)
        if self.crossing:
            own_BTM, foreign_BTM = gate_BTM * self.own_TM, gate_BTM * ~self.own_TM
            mixed_BTh = own_BTM @ expert_BMh + foreign_BTM @ expert_BMh.detach()
        else:
            own_BTnh = private_BMh.unflatten(1, (self.targets, self.private_count))
            own_gate, shared_gate = gate_BTM.split((self.private_count, self.shared_count), dim=-1)
            mixed_BTh = torch.einsum("btn,btnh->bth", own_gate, own_BTnh) + shared_gate @ common_Bsh
        gate_BM = self.shared_gate(shared_BF).softmax(-1)
        return mixed_BTh, torch.einsum("bm,bmh->bh", gate_BM, expert_BMh)


class PLE(nn.Module):
    """Progressive layered extraction; towers read a target's and the shared state of the last layer side by side."""

    def __init__(
        self, numeric: int, cardinalities: Sequence[int], targets: Sequence[NetworkTarget], shape: BaselineShape
    ) -> None:
        super().__init__()
        self.tokeniser = FeatureTokeniser(numeric, cardinalities, shape.embed_dim, shape.initialisation)
        width = (numeric + len(cardinalities)) * shape.embed_dim
        self.target_count = len(targets)
        self.layers, out = _expert_layers(len(targets), width, shape, crossing=False)
        self.towers = _towers(targets, 2 * out, shape)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        shared_BF = self.tokeniser(numeric_BN, code_BC).flatten(1)
        state_BTF = shared_BF.unsqueeze(1).expand(-1, self.target_count, -1)
        for layer in self.layers:
            state_BTF, shared_BF = layer(state_BTF, shared_BF)
        outputs: Tensor = self.towers(_beside(state_BTF, shared_BF))
        return outputs


class STEM(nn.Module):
    """Shared and task-specific embeddings: every target's experts read tokens of its own, the shared ones their own."""

    def __init__(
        self, numeric: int, cardinalities: Sequence[int], targets: Sequence[NetworkTarget], shape: BaselineShape
    ) -> None:
        super().__init__()
        self.tables = len(targets) + 1  # side by side in one token; the last is the shared one
        self.tokeniser = FeatureTokeniser(numeric, cardinalities, self.tables * shape.embed_dim, shape.initialisation)
        width = (numeric + len(cardinalities)) * shape.embed_dim
        self.layers, out = _expert_layers(len(targets), width, shape, crossing=True)
        self.towers = _towers(targets, 2 * out, shape)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        token_Bdte = self.tokeniser(numeric_BN, code_BC).unflatten(-1, (self.tables, -1))
        all_BtF = token_Bdte.transpose(1, 2).flatten(2)
        state_BTF, shared_BF = all_BtF[:, :-1], all_BtF[:, -1]
        for layer in self.layers:
            state_BTF, shared_BF = layer(state_BTF, shared_BF)
        outputs: Tensor = self.towers(_beside(state_BTF, shared_BF))
        return outputs


def _expert_layers(targets: int, width: int, shape: BaselineShape, *, crossing: bool) -> tuple[nn.ModuleList, int]:
    out = (width, *shape.hidden)[-1]
    inputs = [width, *[out] * (shape.layers - 1)]
    return nn.ModuleList(ExpertLayer(targets, each, shape, crossing=crossing) for each in inputs), out


def _beside(state_BTh: Tensor, shared_Bh: Tensor) -> Tensor:
    return torch.cat((state_BTh, shared_Bh.unsqueeze(1).expand_as(state_BTh)), dim=-1)


def _towers(targets: Sequence[NetworkTarget], inputs: int, shape: BaselineShape) -> Towers:
    return Towers(targets, inputs, shape.tower, shape.dropout, shape.initialisation, norm=True)
