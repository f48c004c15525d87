"""The load-balancing loss of mixture-of-experts models, beside the tasks' losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.models.packed import without_adapters


class RouterLoss:
    """Keeps the router logits of every forward pass, so that their loss costs no pass of its own.

    The loss is that of the Switch Transformer (arXiv:2101.03961, equations 4-6) as transformers computes it for its
    models, over the tokens of a micro-batch, padding left out.

    Args:
        model: causal model with experts, with or without adapters.
        coefficient: of the loss.
    """

    def __init__(self, model: nn.Module, coefficient: float) -> None:
        plain: Any = without_adapters(model)
        self.coefficient = coefficient
        self._config = plain.config.get_text_config()
        self._asked = getattr(self._config, "output_router_logits", False)
        self._config.output_router_logits = True
        self._logits: Any = ()  # of every layer [B * S, experts]
        self._hook = plain.get_decoder().register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._logits = tuple(output.router_logits)

    def of_last_pass(self, batch: dict[str, Tensor]) -> Tensor:
        """Return coefficient times loss of the last forward pass, which was on this micro-batch."""
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        mask_BS = (batch["example_ids"] >= 0).long()
        top_k = self._config.num_experts_per_tok
        loss: Any = load_balancing_loss_func(self._logits, experts(self._config), top_k, mask_BS)
        return self.coefficient * loss

    def close(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()
        self._config.output_router_logits = self._asked
        self._logits = ()


def experts(config: Any) -> int | None:
    """Return the number of experts per layer; None for a model without experts."""
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return None


def make_router_loss(model: nn.Module, coefficient: float | None) -> RouterLoss | None:
    """Return the router loss that is asked for, or that the model's own config asks for; None without one.

    Args:
        model: the backbone's.
        coefficient: None: the model's ``router_aux_loss_coef`` where its config has ``output_router_logits``; 0: none.

    Raises:
        MultituneError: asked for on a model without experts, or one whose router cannot be read.
    """
    config = without_adapters(model).config.get_text_config()
    if coefficient is None:
        coefficient = config.router_aux_loss_coef if getattr(config, "output_router_logits", False) else 0.0
    if not coefficient:
        return None
    if experts(config) is None or not hasattr(config, "output_router_logits"):
        raise MultituneError(
            f"{type(without_adapters(model)).__name__} has no router whose load could be balanced.",
            "training.router_loss",
            "Take the key out, or choose a model with experts.",
        )
    return RouterLoss(model, coefficient)
