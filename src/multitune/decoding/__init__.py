"""What a model writes: batched generation, and the logits of several models fused into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitune.decoding.logit_fusion import LogitFusion

__all__ = ["LogitFusion"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name == "LogitFusion":
        from multitune.decoding.logit_fusion import LogitFusion

        return LogitFusion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
