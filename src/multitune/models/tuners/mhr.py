"""Multi-head adapter routing: every task mixes a shared inventory of low-rank modules (arXiv:2211.03831).

Shape legend: ``T`` tasks, ``U`` different tasks of a batch, ``H`` heads (splits), ``S`` skills (modules), ``r`` rank,
``I`` and ``O`` a head's share of a layer's inputs and outputs, ``B`` rows, ``P`` positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from multitune.models.architecture import architecture_index
from multitune.models.tuners.places import matrices_of, matrix_widths
from multitune.models.tuners.task_ids import UNKNOWN, TaskIds
from multitune.models.tuners.tuner import PlacedTuner

ROUTERS = ("skills", "private", "average")
GRANULARITIES = ("finegrained", "layerwise", "blockwise", "coderwise", "coarsegrained")
SMALL = 1e-3
"""Bound of the logits at the start: almost uniform mixing."""


@dataclass
class MhrConfig(PeftConfig):
    """Options of `MhrModel`; the defaults are those of the paper's runs on T0.

    Attributes:
        r: rank of every module.
        alpha: the change is scaled by alpha / r.
        n_skills: modules of the inventory, S; ``private`` has one per task.
        n_splits: heads, H; 1 is Poly (arXiv:2202.13914). Must divide the widths of every adapted layer.
        tasks: names of the tasks, in the order of their ids.
        router: ``skills``: learned mixtures; ``private``: every task its own module; ``average``: all modules alike.
        granularity: which layers share a task's logits: none (``finegrained``), those of attention or feed-forward in a
            block (``layerwise``), of a block, of encoder or decoder (``coderwise``), or all (``coarsegrained``).
        stochastic: whether gates are relaxed Bernoulli samples in training, as Poly's were.
        trains: ``all``, or ``routing``: the logits alone (MHR-z).
        target_modules: linear layers; None: all inside the layers.
    """

    r: int = field(default=1)
    alpha: float = field(default=1.0)
    n_skills: int = field(default=8)
    n_splits: int = field(default=64)
    tasks: list[str] | None = field(default=None)
    router: str = field(default="skills")
    granularity: str = field(default="finegrained")
    stochastic: bool = field(default=False)
    trains: str = field(default="all")
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["MHR"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        for name, allowed in (("router", ROUTERS), ("granularity", GRANULARITIES), ("trains", ("all", "routing"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)}")
        if self.router == "private":
            self.n_skills = self.n_tasks
        if self.router != "skills" and self.trains == "routing":
            raise ValueError(f"the router {self.router} has no logits that could train alone")

    @property
    def n_tasks(self) -> int:
        """T, at least 1."""
        return max(1, len(self.tasks or ()))


class MhrLayer(nn.Module, BaseTunerLayer):
    """A linear layer W x + (alpha / r) x A_t B_t, where every task t mixes A and B by its own weights.

    The heads of A [H, S, I, r] stand side by side along the inputs, those of B [H, S, r, O] along the outputs. Factors
    are averaged, not products; the rank-r bottleneck is shared by all heads (arXiv:2211.03831, section 3).
    """

    adapter_layer_names = ("mhr_A", "mhr_B", "mhr_Z")

    def __init__(self, base_layer: nn.Module, widths: tuple[int, int], task_ids: TaskIds) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.widths = widths
        self.task_ids = task_ids
        self.mhr_A = nn.ParameterDict()
        self.mhr_B = nn.ParameterDict()
        self.mhr_Z = nn.ParameterDict()
        self.configs: dict[str, MhrConfig] = {}
        self.annealing = 1.0

    def update_layer(self, adapter_name: str, config: MhrConfig, logits_THS: nn.Parameter) -> None:
        """Add an adapter: A uniform within sqrt(1/3) / sqrt(d_in), B zero, and logits that other layers may share."""
        for width in self.widths:
            if width % config.n_splits:
                raise ValueError(f"n_splits: {config.n_splits} does not divide a width of {width}")
        weight: Any = self.get_base_layer().weight
        place = {"device": weight.device, "dtype": weight.dtype if weight.is_floating_point() else torch.float32}
        inputs, outputs = (width // config.n_splits for width in self.widths)
        bound = math.sqrt(1 / 3) / math.sqrt(self.widths[0])
        factor = torch.empty(config.n_splits, config.n_skills, inputs, config.r, **place).uniform_(-bound, bound)
        self.mhr_A[adapter_name] = nn.Parameter(factor)
        self.mhr_B[adapter_name] = nn.Parameter(
            torch.zeros(config.n_splits, config.n_skills, config.r, outputs, **place)
        )
        self.mhr_Z[adapter_name] = logits_THS
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; what their configs do not train stays frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for name in self.active_adapters:
            if name not in self.configs:
                continue
            config = self.configs[name]
            if config.router != "skills":
                self.mhr_Z[name].requires_grad_(False)
            if config.trains == "routing":
                self.mhr_A[name].requires_grad_(False)
                self.mhr_B[name].requires_grad_(False)

    def mixture(self, name: str, ids_U: Tensor) -> Tensor:
        """Return the mixing weights of tasks, [U, H, S]; they sum to one over the skills.

        A task of id UNKNOWN weighs all skills alike.

        Raises:
            IndexError: an id beyond the adapter's tasks.
        """
        config, logits_THS = self.configs[name], self.mhr_Z[name]
        if int(ids_U.max()) >= config.n_tasks:
            raise IndexError(f"the task id {int(ids_U.max())} is beyond the {config.n_tasks} tasks of the adapter")
        logits_UHS = logits_THS[ids_U.clamp(min=0)]
        if config.router == "skills":
            if config.stochastic and self.training:
                uniform = torch.rand_like(logits_UHS).clamp(1e-6, 1 - 1e-6)
                logits_UHS = logits_UHS + torch.log(uniform) - torch.log1p(-uniform)
            gates_UHS = torch.sigmoid(logits_UHS)
        elif config.router == "private":
            gates_UHS = nn.functional.one_hot(ids_U.clamp(min=0), config.n_skills)[:, None, :].expand_as(logits_UHS)
            gates_UHS = gates_UHS.to(logits_UHS.dtype)
        else:
            gates_UHS = torch.ones_like(logits_UHS)
        gates_UHS = torch.where((ids_U == UNKNOWN)[:, None, None], 1.0, gates_UHS)
        alpha_UHS = gates_UHS / (gates_UHS.sum(dim=-1, keepdim=True) + 1e-12)
        return self.annealing * alpha_UHS + (1 - self.annealing) / config.n_skills

    def factors(self, name: str, ids_U: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed factors of tasks: A [U, d_in, r] and B [U, r, d_out]."""
        alpha_UHS = self.mixture(name, ids_U)
        a_UHIr = torch.einsum("uhs,hsir->uhir", alpha_UHS.to(self.mhr_A[name].dtype), self.mhr_A[name])
        b_UrHO = torch.einsum("uhs,hsro->urho", alpha_UHS.to(self.mhr_B[name].dtype), self.mhr_B[name])
        return a_UHIr.flatten(1, 2), b_UrHO.flatten(2, 3)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output for an input [B, ..., d_in] with what the active adapters add."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name in self.mhr_A:
                output = output + self._added(name, hidden).to(output.dtype)
        return output

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        ids = self.task_ids.of(hidden)
        if ids is None:
            ids = torch.full(hidden.shape[:1], UNKNOWN, device=hidden.device)
        tasks_U, place = torch.unique(ids, return_inverse=True)
        a_UIr, b_UrO = self.factors(name, tasks_U)
        hidden = hidden.to(a_UIr.dtype)
        scale = self.configs[name].alpha / self.configs[name].r
        if len(tasks_U) == 1:
            return scale * (hidden @ a_UIr[0]) @ b_UrO[0]
        if place.ndim == 1 and hidden.ndim == 3:
            return scale * torch.bmm(torch.bmm(hidden, a_UIr[place]), b_UrO[place])
        # Tokens of several tasks in one row: every token passes all bottlenecks, and keeps its own task's.
        own = nn.functional.one_hot(place, len(tasks_U)).to(hidden.dtype)
        low = torch.einsum("...i,uir->...ur", hidden, a_UIr) * own[..., None]
        return scale * torch.einsum("...ur,uro->...o", low, b_UrO)


class MhrModel(PlacedTuner):
    """A model whose linear layers mix shared low-rank modules by the task of every row or token."""

    prefix = "mhr_"
    tuner_layer_cls = MhrLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Find which layers share their logits, then inject."""
        self.__dict__.setdefault("task_ids", TaskIds())
        self.__dict__.setdefault("_logits", {})
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.__dict__["_index"] = {place.unit: place for place in architecture_index(shapes).values()}
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the linear layers inside the layers."""
        parts = ("q", "k", "v", "o", "qkv", "kv", "up", "gate", "down", "gate_up")
        found = list(matrices_of(model, *parts))
        if not found:
            raise ValueError("no linear layers were found inside the layers; name target_modules")
        return found

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer with an inventory of modules."""
        layer = MhrLayer(target, matrix_widths(target, path), self.task_ids)
        self.more(layer, path, adapter_name, config)
        return layer

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another inventory to a layer."""
        key = adapter_name, self._group(path, config.granularity)
        if key not in self._logits:
            weight = layer.get_base_layer().weight
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
            logits = torch.empty(config.n_tasks, config.n_splits, config.n_skills, device=weight.device, dtype=dtype)
            self._logits[key] = nn.Parameter(logits.uniform_(-SMALL, SMALL))
        layer.update_layer(adapter_name, config, self._logits[key])

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        for key in [key for key in self._logits if key[0] == adapter_name]:
            del self._logits[key]

    def _group(self, path: str, granularity: str) -> tuple[Any, ...]:
        place = self._index.get(path)
        if granularity == "finegrained" or place is None:
            return (path,)
        if granularity == "coarsegrained":
            return ()
        key = (place.stack, place.layer, place.category, place.group)
        return key[: {"coderwise": 1, "blockwise": 2, "layerwise": 4}[granularity]]

    def _check_merge_allowed(self) -> None:
        # the error by which peft's own tuners refuse a merge that their method rules out
        raise NotImplementedError("every task has its own mixture; export the adapter of one task as LoRA instead")
