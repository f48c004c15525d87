"""Training of tabular networks: losses of mixed targets with missing labels, data on the device, early stopping.

Shape legend: ``n`` rows of a table, ``B`` of a batch, ``T`` targets, ``O`` outputs of the network.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.tabular.multitab_columns import TableError
from multitune.tabular.network_layers import NetworkTarget, output_slices

logger = logging.getLogger("multitune.tabular")

RegressionLoss = Literal["mse", "rmse"]
Precision = Literal["fp32", "bf16"]

FREE_SHARE = 0.5  # of the device's free memory that the table may take; beyond it batches are copied one by one


@dataclass(frozen=True)
class Rows:
    """A table in column blocks, each one tensor.

    Attributes:
        numeric: float32 (n, N), standardised, no missing value.
        codes: int32 (n, C), of the categories.
        labels: float32 (n, T): 0 or 1, the class, or the standardised value; nan where missing. None to predict.
        weights: float32 (n, T), or None where all are 1.
    """

    numeric: Tensor
    codes: Tensor
    labels: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, rows: Tensor | slice) -> Rows:
        """Return some of the rows."""
        return self._each(lambda block: block[rows])

    def to(self, device: torch.device) -> Rows:
        return self._each(lambda block: block.to(device, non_blocking=True))

    def of_targets(self, targets: list[int]) -> Rows:
        """Return all rows with some of the targets."""
        assert self.labels is not None
        weights = None if self.weights is None else self.weights[:, targets]
        return replace(self, labels=self.labels[:, targets], weights=weights)

    def labelled(self) -> Rows:
        """Return the rows that teach something: with a label of some target, and weight on it."""
        assert self.labels is not None
        teaches = ~self.labels.isnan() if self.weights is None else ~self.labels.isnan() & (self.weights > 0)
        return self if bool(teaches.any(1).all()) else self.take(teaches.any(1))

    def features(self) -> Rows:
        """Return the rows without labels and weights."""
        return Rows(self.numeric, self.codes)

    @property
    def bytes(self) -> int:
        blocks = (self.numeric, self.codes, self.labels, self.weights)
        return sum(block.nbytes for block in blocks if block is not None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        labels = None if self.labels is None else change(self.labels)
        weights = None if self.weights is None else change(self.weights)
        return Rows(change(self.numeric), change(self.codes), labels, weights)


def counted(label_BT: Tensor, weight_BT: Tensor | None) -> Tensor:
    """Return by how much every label counts, (B, T): its weight, 0 where it is missing."""
    present_BT = ~label_BT.isnan()
    return present_BT.float() if weight_BT is None else present_BT * weight_BT


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; AdamW at a constant rate.

    Attributes:
        patience: epochs without a better validation score after which training ends; without validation rows all
            epochs are run.
        tolerance: by how much a score has to be better to count.
    """

    epochs: int = 100
    batch_size: int = 2048
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    patience: int = 5
    tolerance: float = 0.0
    regression_loss: RegressionLoss = "mse"
    precision: Precision = "fp32"
    verbose: bool = False


@dataclass
class History:
    """What training left: by epoch the losses per target and the validation scores, and the epoch that was kept."""

    losses: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


class TargetLosses(nn.Module):
    """Sums of losses and of weights, per target, over the labels that are present: (B, O) -> (T,), (T,).

    Binary cross-entropy on the logit, cross-entropy, squared error. Targets of a kind are computed together.
    """

    place_T: Tensor
    is_regression_T: Tensor

    def __init__(self, targets: Sequence[NetworkTarget]) -> None:
        super().__init__()
        slices = output_slices(targets)
        by_kind: dict[tuple[str, int], list[int]] = {}
        for t, target in enumerate(targets):
            by_kind.setdefault((target.kind, target.outputs), []).append(t)
        self.groups = list(by_kind)
        for place, ((_, outputs), group) in enumerate(by_kind.items()):
            self.register_buffer(f"targets_{place}", torch.tensor(group))
            columns = torch.tensor([o for t in group for o in range(slices[t].start, slices[t].stop)])
            self.register_buffer(f"columns_{place}", columns.view(len(group), outputs))
        self.register_buffer("place_T", torch.tensor([t for group in by_kind.values() for t in group]).argsort())
        self.register_buffer("is_regression_T", torch.tensor([target.kind == "regression" for target in targets]))

    def forward(self, output_BO: Tensor, label_BT: Tensor, weight_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        counted_BT = counted(label_BT, weight_BT).to(output_BO.dtype)
        known_BT = label_BT.nan_to_num()
        losses = []
        for place, (kind, _) in enumerate(self.groups):
            columns_Go, targets_G = self.get_buffer(f"columns_{place}"), self.get_buffer(f"targets_{place}")
            losses.append(_losses(kind, output_BO[:, columns_Go], known_BT[:, targets_G]))
        loss_BT = torch.cat(losses, dim=1)[:, self.place_T]
        return (loss_BT * counted_BT).sum(0), counted_BT.sum(0)


def _losses(kind: str, output_BGo: Tensor, label_BG: Tensor) -> Tensor:
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(output_BGo.squeeze(-1), label_BG, reduction="none")
    if kind == "multiclass":
        return F.cross_entropy(output_BGo.transpose(1, 2), label_BG.long(), reduction="none")
    return (output_BGo.squeeze(-1) - label_BG) ** 2


@dataclass(frozen=True)
class Place:
    """Where training runs: the device, and which of how many processes this is."""

    device: torch.device
    process: int = 0
    processes: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.processes == 1:
            return tensor
        from accelerate.utils import reduce

        total: Tensor = reduce(tensor, "sum")
        return total


def find_place(device: str) -> Place:
    """Return the process's place: under ``accelerate launch`` its own device, else what ``device`` says.

    Args:
        device: "auto" takes a CUDA device where there is one, or what torch calls a device.

    Raises:
        TableError: torch has no such device here.
    """
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=device == "cpu")
        return Place(state.device, state.process_index, state.num_processes)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise TableError(f"torch has no device '{device}' here: {first}", "device", 'Set device="auto".') from None
    return Place(torch.device(device))


def train_network(
    network: nn.Module,
    targets: Sequence[NetworkTarget],
    rows: Rows,
    settings: TrainingSettings,
    place: Place,
    seed: int,
    validate: Callable[[], float] | None = None,
) -> History:
    """Train a network in place; with ``validate`` it ends with the weights of the best epoch.

    Every process has all rows and takes its share of every batch. Losses are sums over the present labels of a batch,
    divided once by their weight over all processes, and added over the targets; so are the gradients: any number of
    processes takes the same step, dropout, batch normalisation and attention between rows apart.

    Args:
        rows: to learn from, with labels.
        validate: returns the score of the network as it is, larger is better; nan counts as worst.
    """
    started = time.perf_counter()
    losses_of = TargetLosses(targets).to(place.device)
    network.to(place.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    rows = rows.to(place.device) if _fits(rows, place.device) else rows
    shuffle = torch.Generator().manual_seed(seed)
    history, best, best_state = History(), -math.inf, None
    for epoch in range(1, settings.epochs + 1):
        network.train()
        history.losses.append(_epoch(network, losses_of, optimizer, rows, settings, place, shuffle))
        if validate is None:
            history.best_epoch = epoch
            continue
        network.eval()
        # one process decides for all, lest two disagree in the last digit and one waits for ever
        score = float(place.sum(torch.tensor(validate() if place.process == 0 else 0.0, device=place.device)))
        history.scores.append(score)
        if settings.verbose:
            logger.info("epoch %d: validation score %.5f", epoch, score)
        if best_state is None or score > best + settings.tolerance:
            best, history.best_epoch = (score if not math.isnan(score) else -math.inf), epoch
            best_state = copy.deepcopy(network.state_dict())
        elif epoch - history.best_epoch >= settings.patience:
            break
    if best_state is not None:
        network.load_state_dict(best_state)
    network.eval()
    history.seconds = time.perf_counter() - started
    return history


def _epoch(
    network: nn.Module,
    losses_of: TargetLosses,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    settings: TrainingSettings,
    place: Place,
    shuffle: torch.Generator,
) -> list[float]:
    order = torch.randperm(len(rows), generator=shuffle)
    total_T = weight_T = torch.zeros((), device=place.device)
    # batches of nearly one size, two rows at least: no small rest, whose batch statistics and neighbours would be odd
    batches = max(1, min(math.ceil(len(rows) / settings.batch_size), len(rows) // 2))
    for batch in order.tensor_split(batches):
        mine = rows.take(batch[place.process :: place.processes].to(rows.numeric.device)).to(place.device)
        assert mine.labels is not None
        present_T = place.sum(counted(mine.labels, mine.weights).sum(0))
        optimizer.zero_grad()
        # the root of a batch's error is not a sum over its rows
        for some in [mine] if settings.regression_loss == "rmse" else _slices(mine, network, place.device):
            assert some.labels is not None
            with autocast(settings.precision, place.device):
                output_BO = network(some.numeric, some.codes)
            sum_T, _ = losses_of(output_BO.float(), some.labels, some.weights)
            mean_T = sum_T / present_T.clamp_min(torch.finfo(present_T.dtype).tiny)
            if settings.regression_loss == "rmse":
                mean_T = mean_T * _slope_of_root(place.sum(mean_T.detach()), losses_of.is_regression_T)
            mean_T.sum().backward()
            total_T = total_T + sum_T.detach()
        _sum_gradients(network, place)
        optimizer.step()
        weight_T = weight_T + present_T
    means: list[float] = (place.sum(total_T) / weight_T).tolist()
    return means


def _slices(rows: Rows, network: nn.Module, device: torch.device) -> list[Rows]:
    """Return a batch in parts that a processor's cache holds, where the network computes every row for itself.

    Gradients of the parts add up to the batch's; large activations that come and go cost a processor more time than
    what is computed of them.
    """
    at_once = getattr(network, "rows_at_once", None)
    if device.type != "cpu" or at_once is None or len(rows) <= at_once:
        return [rows]
    starts = range(0, len(rows), at_once)
    return [rows.take(slice(start, start + at_once)) for start in starts]


def _slope_of_root(mean_T: Tensor, is_regression_T: Tensor) -> Tensor:
    """Return what turns the gradient of a squared error into that of its root, 1 for the other targets."""
    # a root has no slope at 0, and a batch may hold no label of a target
    return torch.where(is_regression_T, 0.5 * mean_T.clamp_min(1e-12).rsqrt(), torch.ones_like(mean_T))


def _sum_gradients(network: nn.Module, place: Place) -> None:
    if place.processes == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = place.sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def autocast(precision: Precision, device: torch.device) -> Any:
    """Return the context in which a network computes: bfloat16 products where asked for."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _fits(rows: Rows, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return rows.bytes < FREE_SHARE * free


@torch.no_grad()
def network_outputs(
    network: nn.Module,
    rows: Rows,
    place: Place,
    batch_size: int,
    precision: Precision = "fp32",
    context: Sequence[Tensor] = (),
) -> Tensor:
    """Return the outputs for all rows on the CPU, float32 (n, O), computed in evaluation mode.

    Args:
        context: what a network with attention between rows attends to; empty for any other.
    """
    network.to(place.device).eval()
    extra = {"context": context} if context else {}
    outputs = []
    for start in range(0, len(rows), batch_size):
        batch = rows.take(slice(start, start + batch_size)).to(place.device)
        for some in _slices(batch, network, place.device):
            with autocast(precision, place.device):
                outputs.append(network(some.numeric, some.codes, **extra).float().cpu())
    return torch.cat(outputs)
