"""The baselines of MultiTab-Net as one estimator, with MultiTab-Net's contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from multitune.tabular.multitab import MixedPredictions
from multitune.tabular.multitab_network import MultiTabNetwork, NetworkShape
from multitune.tabular.network_baselines import PLE, STEM, BaselineShape, MMoE, SharedBottom
from multitune.tabular.network_layers import Initialisation, NetworkTarget
from multitune.tabular.network_training import Precision, RegressionLoss

Network = Literal["mlp", "shared_bottom", "mmoe", "ple", "stem", "ft_transformer"]

JOINT = {"shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "stem": STEM}
PER_TARGET = ("mlp", "ft_transformer")


class TabularNetworkBaseline(MixedPredictions):
    """A network that MultiTab-Net is compared with; targets, predictions and saving as with ``MultiTabNet``.

    Args:
        network: "mlp", one perceptron per target; "shared_bottom", "mmoe", "ple", "stem", one network for all;
            "ft_transformer", one transformer with a class token per target.
        hidden: layers of the perceptron or of every expert; "mlp" has the tower's layers after them.
        tower: hidden layers of every target's own perceptron.
        experts: of MMoE. shared_experts, private_experts, layers: of PLE and STEM.
        blocks, heads, ff_dim, att_dropout: of the transformer.
        dropout: after hidden layers; in the transformer on tokens and feed-forward layers.

    The other parameters are those of ``MultiTabNet``.
    """

    def __init__(
        self,
        network: Network = "shared_bottom",
        *,
        target_types: Mapping[str, str] | Sequence[str] | None = None,
        embed_dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        tower: Sequence[int] = (64,),
        experts: int = 8,
        shared_experts: int = 4,
        private_experts: int = 2,
        layers: int = 1,
        blocks: int = 2,
        heads: int = 4,
        ff_dim: int = 256,
        dropout: float = 0.0,
        att_dropout: float = 0.0,
        initialisation: Initialisation = "paper",
        regression_loss: RegressionLoss = "mse",
        epochs: int = 100,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        patience: int = 5,
        categorical_features: Any = "auto",
        precision: Precision = "fp32",
        device: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.network = network
        self.target_types = target_types
        self.embed_dim = embed_dim
        self.hidden = hidden
        self.tower = tower
        self.experts = experts
        self.shared_experts = shared_experts
        self.private_experts = private_experts
        self.layers = layers
        self.blocks = blocks
        self.heads = heads
        self.ff_dim = ff_dim
        self.dropout = dropout
        self.att_dropout = att_dropout
        self.initialisation = initialisation
        self.regression_loss = regression_loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.categorical_features = categorical_features
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def _per_target(self) -> bool:  # type: ignore[override]
        return self.network in PER_TARGET

    def _network(self, targets: list[NetworkTarget]) -> nn.Module:
        if self.network == "ft_transformer":
            transformer = NetworkShape(
                blocks=self.blocks,
                heads=self.heads,
                embed_dim=self.embed_dim,
                ff_dim=self.ff_dim,
                tower=tuple(self.tower),
                mask="none",
                multi_token=False,  # one token for one target: the class token
                ff_dropout=self.dropout,
                att_dropout=self.att_dropout,
                initialisation=self.initialisation,
            )
            return MultiTabNetwork(*self._widths, targets, transformer)
        shape = BaselineShape(
            embed_dim=self.embed_dim,
            hidden=tuple(self.hidden),
            tower=tuple(self.tower),
            experts=self.experts,
            shared_experts=self.shared_experts,
            private_experts=self.private_experts,
            layers=self.layers,
            dropout=self.dropout,
            initialisation=self.initialisation,
        )
        return JOINT.get(self.network, SharedBottom)(*self._widths, targets, shape)
