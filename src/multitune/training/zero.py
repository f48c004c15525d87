"""DeepSpeed's ZeRO-1 and ZeRO-2, whose optimiser holds the parameters flat, a part on every process.

Checkpoints stay what they are everywhere: tensors and JSON. A group's flat state is written whole, so that another
number of processes can go on with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def zero_optimizer(optimizer: Any) -> Any | None:
    """Return DeepSpeed's ZeRO optimiser inside what accelerate made of it; None for any other optimiser."""
    while optimizer is not None:
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def whole_state(zero: Any) -> dict[str, Any]:
    """Return the state of all processes as one optimiser would have it: parameter i is the flat group i.

    All processes ask together; the result is on the CPU.
    """
    state: dict[int, dict[str, Any]] = {}
    for index, part in enumerate(zero.single_partition_of_fp32_groups):
        entries = zero.optimizer.state[part]
        state[index] = {key: _joined(value, zero, index, part) for key, value in entries.items()}
        state[index]["parameters"] = _joined(part.data, zero, index, part)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in zero.optimizer.param_groups]
    return {"state": state, "param_groups": [{**group, "params": [i]} for i, group in enumerate(groups)]}


def load_whole_state(zero: Any, state: dict[str, Any]) -> None:
    """Give every process its part of what ``whole_state`` returned; the model has its weights already."""
    for index, part in enumerate(zero.single_partition_of_fp32_groups):
        entries = {key: _own(value, zero, index, part) for key, value in state["state"][index].items()}
        part.data.copy_(entries.pop("parameters"))
        zero.optimizer.state[part] = entries
    for group, saved in zip(zero.optimizer.param_groups, state["param_groups"], strict=True):
        group |= {key: value for key, value in saved.items() if key != "params"}


def master_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the float32 values of the parameters that train, whole; all processes ask together."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters() if p.requires_grad}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def _place(zero: Any, index: int) -> int:
    return int(torch.distributed.get_rank(zero.real_dp_process_group[index]))


def _joined(value: Any, zero: Any, index: int, part: Tensor) -> Any:
    """Return the parts of all processes in a row, the padding at the end left out; numbers as they are."""
    if not isinstance(value, Tensor) or value.shape != part.shape:
        return value
    group = zero.real_dp_process_group[index]
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, value.contiguous(), group=group)
    return torch.cat(parts)[: sum(p.numel() for p in zero.bit16_groups[index])].cpu()


def _own(value: Any, zero: Any, index: int, part: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    start = _place(zero, index) * part.numel()
    own = value[start : start + part.numel()].to(part)
    return torch.cat([own, own.new_zeros(part.numel() - own.numel())])
