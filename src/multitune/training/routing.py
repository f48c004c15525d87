"""The weights by which tasks mix modules learn at a speed of their own."""

from __future__ import annotations

import torch
from torch import nn

ROUTING = ".mhr_Z."
"""Part of the names of routing weights."""

ROUTING_SPEED = 100.0
"""How much faster than the modules they learn unless the user says otherwise: 0.1 against 1e-3 (arXiv:2211.03831)."""


def speed_up_routing(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Move routing weights that train into a group of their own, without weight decay; other models stay as they are.

    At the modules' own rate they would hardly move, and decay would pull every mixture back to the average
    (arXiv:2202.13914, section 3).
    """
    routing = {id(p): p for name, p in model.named_parameters() if ROUTING in name and p.requires_grad}
    if not routing:
        return
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in routing]
    optimizer.add_param_group({"params": list(routing.values()), "lr": learning_rate, "weight_decay": 0.0})
