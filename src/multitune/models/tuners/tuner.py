"""What our tuners share: finding their places by the architecture index, and putting layers there."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn


class PlacedTuner(BaseTuner):
    """A tuner that finds its own places when the user names none."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own attribute

    @abstractmethod
    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the module paths that get an adapter.

        Raises:
            ValueError: this architecture has none.
        """

    @abstractmethod
    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer that takes a module's place."""

    @abstractmethod
    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another adapter to a layer of ours."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Find the places, then inject as peft does."""
        config: Any = self.peft_config[adapter_name]
        if config.target_modules is None:
            # beside another adapter the module below it may be found, and the one that holds it is meant
            config.target_modules = {path.removesuffix(".base_layer") for path in self.places(model, config)}
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            self.more(target, current_key, adapter_name, peft_config)
            return
        layer = self.new_layer(target, current_key, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
