"""MultiTab-Net as scikit-learn estimators: many target columns of any kinds, learned by one network.

Source: MultiTab, AAAI 2026. The network is in ``multitab_network.py``; what all network estimators do alike, in
``network_estimator.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from torch import Tensor, nn

from multitune.tabular.multitab_network import InterSample, Mask, MultiTabNetwork, NetworkShape
from multitune.tabular.network_estimator import NetworkEstimator
from multitune.tabular.network_layers import Initialisation, NetworkTarget
from multitune.tabular.network_training import Precision, RegressionLoss, Rows


class _MultiTabEstimator(NetworkEstimator):
    """An estimator whose network is a MultiTab-Net."""

    def __init__(
        self,
        *,
        target_types: Mapping[str, str] | Sequence[str] | None = None,
        mask: Mask = "TxT",
        multi_token: bool = True,
        blocks: int = 1,
        heads: int = 4,
        embed_dim: int = 16,
        ff_dim: int = 256,
        tower: Sequence[int] = (64,),
        ff_dropout: float = 0.0,
        att_dropout: float = 0.0,
        inter_sample: InterSample = "off",
        context_rows: int = 512,
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
        self.target_types = target_types
        self.mask = mask
        self.multi_token = multi_token
        self.blocks = blocks
        self.heads = heads
        self.embed_dim = embed_dim
        self.ff_dim = ff_dim
        self.tower = tower
        self.ff_dropout = ff_dropout
        self.att_dropout = att_dropout
        self.inter_sample = inter_sample
        self.context_rows = context_rows
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

    def _network(self, targets: list[NetworkTarget]) -> nn.Module:
        shape = NetworkShape(
            blocks=self.blocks,
            heads=self.heads,
            embed_dim=self.embed_dim,
            ff_dim=self.ff_dim,
            tower=tuple(self.tower),
            mask=self.mask,
            multi_token=self.multi_token,
            inter_sample=self.inter_sample,
            ff_dropout=self.ff_dropout,
            att_dropout=self.att_dropout,
            initialisation=self.initialisation,
        )
        return MultiTabNetwork(*self._widths, targets, shape)

    def _encode(self, network: nn.Module, context: Rows) -> Sequence[Tensor]:
        assert isinstance(network, MultiTabNetwork)
        return network.encode_context(context.numeric, context.codes)

    def _draw_context(self, rows: Rows, seed: int) -> Rows | None:
        if self.inter_sample == "off":
            return None
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return rows.take(order[: self.context_rows]).features()


class MultiTabNetRegressor(RegressorMixin, _MultiTabEstimator):
    """MultiTab-Net for one or many regression targets, with labels missing anywhere.

    Targets are standardised inside. ``predict`` returns float32 (rows,) for a one-dimensional y, else (rows, targets).
    See ``MultiTabNet`` for the parameters.
    """

    _kinds = ("regression",)

    def predict(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the predicted values, in the targets' own units."""
        values, _ = self._target_outputs(X)
        return values[0] if self._one_dimensional else np.stack(values, axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean over the targets of R2, over the labels that are present."""
        return NetworkEstimator.score(self, X, y, sample_weight)


class MultiTabNetClassifier(ClassifierMixin, _MultiTabEstimator):
    """MultiTab-Net for one or many classification targets, with labels missing anywhere.

    ``predict`` returns classes, (rows,) for a one-dimensional y, else (rows, targets); ``predict_proba`` an array
    (rows, classes), or a list of one for every target. See ``MultiTabNet`` for the parameters.

    Attributes:
        classes_: the classes, or a list of them for every target.
    """

    _kinds = ("binary", "multiclass")

    @property
    def classes_(self) -> Any:
        classes = [target.class_array() for target in self.targets_]
        return classes[0] if self._one_dimensional else classes

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest classes."""
        values, _ = self._target_outputs(X)
        classes = self._predicted(values)
        return classes[0] if self._one_dimensional else np.stack(classes, axis=1)

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes, in the order of ``classes_``."""
        values, _ = self._target_outputs(X)
        return values[0] if self._one_dimensional else values

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean over the targets of the accuracy, over the labels that are present."""
        return NetworkEstimator.score(self, X, y, sample_weight)


class MixedPredictions(NetworkEstimator):
    """Predictions of targets of several kinds: a data frame of labels and values, probabilities by target."""

    def predict(self, X: Any) -> pd.DataFrame:
        """Return a frame of the targets: the likeliest class, or the value in the target's own unit."""
        values, index = self._target_outputs(X)
        names = [target.name for target in self.targets_]
        return pd.DataFrame(dict(zip(names, self._predicted(values), strict=True)), index=index)

    def predict_proba(self, X: Any) -> dict[str, npt.NDArray[np.float32]]:
        """Return for every classification target the probabilities (rows, classes); ``classes_`` has their order."""
        values, _ = self._target_outputs(X)
        pairs = zip(self.targets_, values, strict=True)
        return {target.name: value for target, value in pairs if target.kind != "regression"}

    @property
    def classes_(self) -> dict[str, npt.NDArray[Any]]:
        """The classes of every classification target."""
        return {target.name: target.class_array() for target in self.targets_ if target.kind != "regression"}


class MultiTabNet(MixedPredictions, _MultiTabEstimator):
    """MultiTab-Net for any mixture of binary, multi-class and regression targets, with labels missing anywhere.

    Every target has a token, every feature has one; attention lets task tokens read features, and the mask says who
    else sees whom. The loss is the plain sum over the targets, each a mean over its present labels.

    Args:
        target_types: "binary", "multiclass" or "regression" for every target, by name or in order; None infers: see
            ``multitab_schema.infer_kind``.
        mask: "TxT" (the paper's: a task token sees no other), "none", "FxT" (features see no task token), "FxT_TxT".
        multi_token: False gives all targets one token.
        blocks, heads, embed_dim, ff_dim, tower: the size, by default the paper's for ACS Income.
        ff_dropout, att_dropout: on tokens, feed-forward layers and towers; on attention weights.
        inter_sample: "off", or "batch": rows of a batch attend to one another in training, and a row that is
            predicted attends to itself and to ``context_rows`` training rows, fixed at fit.
        initialisation: "paper" fills weights with N(0, 0.01^2); "torch", as torch does, learns faster from few rows.
        regression_loss: "mse" as in the paper's code, "rmse" as in its text.
        batch_size: "auto" takes 2048, the paper's, from 100,000 rows, and of fewer rows a fiftieth, at least 32.
        early_stopping: by the mean of AUROC and explained variance on rows kept aside; "auto" from 10,000 rows.
        validation_fraction, patience: the share that is kept aside; epochs without a better score.
        categorical_features: "auto", or names or places of columns that hold numbers and are categories all the same.
        precision: "bf16" computes products in bfloat16; slow on most CPUs.
        device: "auto" takes a CUDA device where there is one; under ``accelerate launch`` every process has its own.
        random_state: an int makes fits repeatable.
    """
