"""Half-Reset, tensor by tensor. Whether a tensor is reset is drawn for the whole model before any is read
(``weights.half_reset``), and the one model is then the base or the tuned one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from multitune.weights.methods.layer import Layer


def half_reset(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return theta0 + m (theta_ft - theta0) with m 0 or 1 (arXiv 2404.18466): the picked weights, to the bit."""
    return deltas[0]
