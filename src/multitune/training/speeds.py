"""Parameters that learn at a speed of their own: the weights by which tasks mix modules, and the vectors of prompts."""

from __future__ import annotations

import torch
from torch import nn

ROUTING = ".mhr_Z."
"""Part of the names of routing weights."""

ROUTING_SPEED = 100.0
"""How much faster than the modules they learn unless the user says otherwise: 0.1 against 1e-3 (arXiv:2211.03831)."""

PROMPT = ".soft_prompt."
"""Part of the names of a prompt's parameters."""

OFFSETS = (".soft_prompt.offset_A.", ".soft_prompt.offset_B.")
"""Parts of the names of those by which the embeddings of the text change: these learn at the plain rate."""

PROMPT_SPEED = 100.0
"""How much faster than the offsets the rest of a prompt learns unless the user says otherwise: 0.3 to 0.5 against 1e-4
to 5e-3, as the authors of DePT search them (arXiv:2309.05173)."""


def speed_up_routing(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Move routing weights that train into a group of their own, without weight decay; other models stay as they are.

    At the modules' own rate they would hardly move, and decay would pull every mixture back to the average
    (arXiv:2202.13914, section 3).
    """
    routing = [p for name, p in model.named_parameters() if ROUTING in name and p.requires_grad]
    _group(optimizer, routing, learning_rate, weight_decay=0.0)


def speed_up_prompts(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float | None) -> None:
    """Move what trains of a prompt, but for its offsets, into a group of its own; other models stay as they are.

    Args:
        optimizer: with one rate for all.
        model: with DePT or EPT; one learning rate for vectors and offsets loses most of the gain.
        learning_rate: of the prompt; None: PROMPT_SPEED times the offsets', and the plain rate where there are none.
    """
    named = [(name, p) for name, p in model.named_parameters() if PROMPT in name and p.requires_grad]
    prompt = [p for name, p in named if not any(part in name for part in OFFSETS)]
    if learning_rate is None:
        if len(prompt) == len(named):
            return
        learning_rate = PROMPT_SPEED * optimizer.param_groups[0]["lr"]
    _group(optimizer, prompt, learning_rate, weight_decay=optimizer.param_groups[0]["weight_decay"])


def _group(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> None:
    """Move parameters into a group of their own."""
    if not parameters:
        return
    moved = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in moved]
    optimizer.add_param_group({"params": parameters, "lr": learning_rate, "weight_decay": weight_decay})
