"""The parameters of soft prompts, and what they say: prompt tuning, DePT, EPT and MPT are parts of the same equations.

Of EPT no code is public: fusion and spaces are reconstructed from the paper's abstract.

Shape legend: ``B`` rows, ``n`` tokens of the input, ``s`` vectors of the prompt, ``d`` width of the embeddings, ``L``
positions with an offset, ``r`` their rank, ``N`` spaces, ``q`` their rank, ``T`` tasks, ``U`` different tasks of a
batch, ``k`` rank of their factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from multitune.models.tuners.soft_prompt_config import DeptConfig, EptConfig, MptConfig, SoftPromptConfig
from multitune.models.tuners.task_ids import UNKNOWN, TaskIds

SMALL = 0.02
"""Standard deviation of the factors of a task beyond the first."""

Folded = tuple[Tensor, Tensor | None]
"""What depends on parameters alone: the prompt [s, d], and what is added to the text by position [L, d]."""


class SoftPrompt(nn.Module, BaseTunerLayer):
    """The parameters of all adapters, in float32 whatever the base."""

    adapter_layer_names = (
        "vectors", "offset_A", "offset_B", "space_D", "space_U", "space_gate", "task_U", "task_V",
    )  # fmt: skip

    vectors: nn.ParameterDict
    offset_A: nn.ParameterDict
    offset_B: nn.ParameterDict
    space_D: nn.ParameterDict
    space_U: nn.ParameterDict
    space_gate: nn.ParameterDict
    task_U: nn.ParameterDict
    task_V: nn.ParameterDict

    embedding: Callable[[], Any]
    """Returns the base's embedding of tokens."""

    def __init__(self, task_ids: TaskIds, embedding: Callable[[], Any]) -> None:
        super().__init__()
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.task_ids = task_ids
        self.__dict__["embedding"] = embedding  # of the base, which is no child of its prompt
        self.configs: dict[str, SoftPromptConfig] = {}
        self._folds: dict[str, tuple[list[tuple[Tensor, int]], Folded]] = {}

    def update_layer(self, name: str, config: SoftPromptConfig, vectors_sd: Tensor, trains: bool) -> None:
        """Add an adapter whose prompt starts as given; what it adds to that starts at zero.

        A is uniform within 1 / sqrt(r) (the DePT authors' Kaiming rule), D within 1 / sqrt(d); B, U and the gate are
        zero. The first factors of every task are ones, so that all tasks start with the shared prompt.
        """
        place: dict[str, Any] = {"device": vectors_sd.device, "dtype": torch.float32}
        width = vectors_sd.shape[1]
        new: dict[str, Tensor] = {"vectors": vectors_sd.float()}
        if isinstance(config, DeptConfig) and config.r:
            new["offset_A"] = torch.empty(config.max_length, config.r, **place).uniform_(-1, 1) / math.sqrt(config.r)
            new["offset_B"] = torch.zeros(config.r, width, **place)
        if isinstance(config, EptConfig) and config.n_spaces:
            spaces, rank = config.n_spaces, config.space_rank
            new["space_D"] = torch.empty(width, spaces, rank, **place).uniform_(-1, 1) / math.sqrt(width)
            new["space_U"] = torch.zeros(spaces, rank, width, **place)
            new["space_gate"] = torch.zeros(width, spaces, **place)
        if isinstance(config, MptConfig):
            first = torch.arange(config.task_rank, device=vectors_sd.device) == 0
            drawn = SMALL * torch.randn(config.n_tasks, config.num_virtual_tokens, config.task_rank, **place)
            new["task_U"] = torch.where(first, 1.0, drawn)
            new["task_V"] = first.float()[None, :, None].repeat(config.n_tasks, 1, width)
        for kind, values in new.items():
            getattr(self, kind)[name] = nn.Parameter(values, requires_grad=trains)
        self.configs[name] = config

    def train(self, mode: bool = True) -> SoftPrompt:
        """Change between training and inference; what was folded is computed anew."""
        self._folds.clear()
        return super().train(mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)
        self._folds.pop(adapter_name, None)

    # -- what the parameters say ---------------------------------------------------------------------------------

    def offsets(self, name: str) -> Tensor | None:
        """Return C = alpha / sqrt(r) A B, what is added to the text at each position [L, d]; None with rank 0."""
        config = self.configs[name]
        if name not in self.offset_A or not isinstance(config, DeptConfig):
            return None
        return config.alpha / math.sqrt(config.r) * self.offset_A[name] @ self.offset_B[name]

    def fused(self, name: str, offsets_Ld: Tensor) -> Tensor:
        """Return F = softmax(P C' / sqrt(d)) C, what the prompt takes from the offsets [s, d] (reconstructed)."""
        prompt_sd = self.vectors[name]
        weight_sL = torch.softmax(prompt_sd @ offsets_Ld.T / math.sqrt(prompt_sd.shape[1]), dim=-1)
        return weight_sL @ offsets_Ld

    def gates(self, name: str) -> Tensor:
        """Return the weights of the spaces, softmax(mean of P's rows times W): [N], they sum to one."""
        return torch.softmax(self.vectors[name].mean(0) @ self.space_gate[name], dim=-1)

    def projected(self, name: str) -> Tensor:
        """Return sum over the spaces of g_k relu(P D_k) U_k: [s, d] (reconstructed)."""
        down_dNq, up_Nqd = self.space_D[name], self.space_U[name]
        inner_sNq = torch.relu(self.vectors[name] @ down_dNq.flatten(1)).unflatten(1, down_dNq.shape[1:])
        return (self.gates(name)[:, None] * inner_sNq).flatten(1) @ up_Nqd.flatten(0, 1)

    def length(self, name: str) -> int:
        """Return s of an adapter."""
        return self.configs[name].num_virtual_tokens

    def folded(self, name: str) -> Folded:
        """Return the prompt P' = P + F + sum of the spaces, and the offsets: all that inference needs.

        Computed anew whenever gradients are wanted. Else what was computed is kept until a parameter is replaced or
        changes in place, as optimisers change it, or ``train()`` or ``eval()`` is called; only what is written through
        ``.data`` without either goes unnoticed.
        """
        if self.training or torch.is_grad_enabled():
            self._folds.pop(name, None)
            return self._unfolded(name)
        parameters = [one[name] for one in map(self._kind, self.adapter_layer_names) if name in one]
        versions = [(one, 0 if one.is_inference() else one._version) for one in parameters]
        kept = self._folds.get(name)
        if kept is None or not _same(kept[0], versions):
            kept = self._folds[name] = versions, self._unfolded(name)
        return kept[1]

    def _unfolded(self, name: str) -> Folded:
        prompt_sd, offsets_Ld, config = self.vectors[name], self.offsets(name), self.configs[name]
        if offsets_Ld is not None and isinstance(config, EptConfig) and config.fusion:
            prompt_sd = prompt_sd + self.fused(name, offsets_Ld)
        if name in self.space_D:
            prompt_sd = prompt_sd + self.projected(name)
        return prompt_sd, offsets_Ld

    @property
    def acting(self) -> str | None:
        """The adapter whose prompt is read now."""
        names = [name for name in self.active_adapters if name in self.vectors]
        return names[0] if names and not self.disable_adapters else None

    def _kind(self, name: str) -> nn.ParameterDict:
        found: nn.ParameterDict = getattr(self, name)
        return found

    def of_rows(self, name: str, shared_sd: Tensor, embedded: Tensor) -> Tensor:
        """Return the prompt of all rows [s, d], or of every row where tasks have their own [B, s, d].

        Args:
            name: of the adapter.
            shared_sd: the prompt that tasks share.
            embedded: the input [B, n, d], which tells rows and tokens.
        """
        if name not in self.task_U:
            return shared_sd
        ids = self.task_ids.of(embedded)
        if ids is None:
            return shared_sd * self.task_factors(name, torch.tensor([UNKNOWN], device=shared_sd.device))[0]
        ids_B = ids.amax(dim=1) if ids.ndim == 2 else ids  # rows are not packed: padding alone is of no task
        ids_U, row_B = torch.unique(ids_B, return_inverse=True)
        return (shared_sd * self.task_factors(name, ids_U))[row_B]

    def task_factors(self, name: str, ids_U: Tensor) -> Tensor:
        """Return what the shared prompt is multiplied by for each task [U, s, d]; for UNKNOWN the mean of all tasks.

        Raises:
            IndexError: an id beyond the adapter's tasks.
        """
        u_Tsk, v_Tkd = self.task_U[name], self.task_V[name]
        if int(ids_U.max()) >= len(u_Tsk):
            raise IndexError(f"the task id {int(ids_U.max())} is beyond the {len(u_Tsk)} tasks of the adapter")
        known = ids_U.clamp(min=0)
        own_Usd = u_Tsk[known] @ v_Tkd[known]
        if not bool((ids_U == UNKNOWN).any()):
            return own_Usd
        mean_sd = torch.einsum("tsk,tkd->sd", u_Tsk, v_Tkd) / len(u_Tsk)
        return torch.where((ids_U == UNKNOWN)[:, None, None], mean_sd, own_Usd)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        device = device or self.__dict__["embedding"]().weight.device
        for kind in map(self._kind, self.adapter_layer_names):
            if adapter_name in kind and not kind[adapter_name].is_meta:
                kind[adapter_name].data = kind[adapter_name].data.to(device)


def _same(kept: list[tuple[Tensor, int]], now: list[tuple[Tensor, int]]) -> bool:
    return len(kept) == len(now) and all(a is b and v == w for (a, v), (b, w) in zip(kept, now, strict=True))
