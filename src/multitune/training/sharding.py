"""Tensors that FSDP2 has dealt out to the processes: gathered to be written, dealt out again when read."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are dealt out to several processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole; all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def dealt_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor dealt out as another one is; all processes hold the same whole tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
