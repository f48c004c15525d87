"""The backbone as a module of losses: batch in, one loss per labelled token (or per example) out.

The wrapper exists because DistributedDataParallel and FSDP synchronise only what passes through ``forward``.

Shape legend: ``B`` rows, ``S`` positions, ``T`` tasks, ``N`` labelled tokens (encoders: examples).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from multitune.adaptation.updates import moving_bases
from multitune.models.heads import batch_logits, head_losses
from multitune.models.hidden import head_logits, hidden_states
from multitune.models.loading import Backbone
from multitune.models.tuners.task_ids import UNKNOWN, places_of, prompts_of, set_prompt_ids, set_task_ids
from multitune.objectives.aggregation import Aggregation, count, task_units
from multitune.objectives.consistency import symmetric_divergence, token_divergence
from multitune.objectives.token_loss import IGNORED, next_token_positions, token_nll
from multitune.tasks.task import Form


class Labelled(NamedTuple):
    """Where a micro-batch carries loss: task and example of every labelled token and its place in [B S], int64 [N]."""

    task_N: Tensor
    example_N: Tensor
    place_N: Tensor


def labelled(batch: dict[str, Tensor], form: Form) -> Labelled:
    """Return what a micro-batch asks for, in the order in which the losses module returns it.

    How many tokens are labelled is known only when that has been computed, for which a GPU would be waited for: ask
    before the batch goes there.
    """
    if form == "encoder":
        mask_BS = batch["task_ids"] >= 0
    else:
        mask_BS = next_token_positions(batch["labels"])[0] if form == "causal" else batch["labels"] != IGNORED
    place_N = mask_BS.flatten().nonzero().flatten()
    return Labelled(batch["task_ids"].flatten()[place_N], batch["example_ids"].flatten()[place_N], place_N)


class LossModule(nn.Module):
    """Wraps a backbone so that ``forward`` returns the loss of every labelled token, float32 [N].

    Args:
        backbone: the model.
        names: of the tasks, in the order of the batches' task ids: what an adapter that routes by task knows them by.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str] = ()) -> None:
        super().__init__()
        self._places_T = places_of(backbone.model, names)
        self._prompts_T = prompts_of(backbone.model, names)
        self.model = backbone.model
        self.form = backbone.form
        half = backbone.half
        self._also = frozenset(half.sizes) if half and half.config.resample == "epoch" else frozenset()
        self._also |= {f"{path}.base_layer.weight" for path, _ in moving_bases(backbone.model, backbone.update)}

    def changing_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield by name what the run may change: what trains, may train at another epoch of half, or moves along."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad or name.removeprefix("model.") in self._also:
                yield name, parameter

    @property
    def _no_split_modules(self) -> list[str]:
        """Class names of the backbone's layers: what FSDP deals out one by one."""
        model = self.model.encoder if self.form == "encoder" else self.model
        return list(getattr(model, "_no_split_modules", None) or [])

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute -log p of every labelled token; for encoders cross-entropy or squared error of every example.

        In training AdaMix adds to each how far two passes with other draws disagree (arXiv:2205.12410).
        """
        # an encoder-decoder's batches know the tasks of targets: one per row, and -1 behind the last
        ids = batch["task_ids"].amax(dim=1) if self.form == "seq2seq" else batch["task_ids"]
        if self._places_T is not None:  # -1, of padding, stays unknown
            set_task_ids(self.model, torch.where(ids >= 0, self._places_T.to(ids.device)[ids], UNKNOWN))
        if self._prompts_T is not None:
            set_prompt_ids(self.model, torch.where(ids >= 0, self._prompts_T.to(ids.device)[ids], UNKNOWN))
        if self.form == "encoder":
            return self._head_losses(batch)
        hidden_BSD = hidden_states(self.model, batch)
        place_N = batch["place_N"] if "place_N" in batch else labelled(batch, self.form).place_N
        predicted_N = place_N + 1 if self.form == "causal" else place_N
        labels_N = batch["labels"].flatten()[predicted_N]
        hidden_ND = hidden_BSD.flatten(0, 1)[place_N]
        nll_N = token_nll(hidden_ND, labels_N, self._logits, self._vocabulary())
        if not self._compares_passes():
            return nll_N
        again_ND = hidden_states(self.model, batch).flatten(0, 1)[place_N]
        return nll_N + token_divergence(hidden_ND, again_ND, self._logits, self._vocabulary())

    def _head_losses(self, batch: dict[str, Tensor]) -> Tensor:
        if not self._compares_passes():
            return head_losses(self.model, batch)
        first_nK, second_nK = batch_logits(self.model, batch), batch_logits(self.model, batch)
        return head_losses(self.model, batch, first_nK) + symmetric_divergence(first_nK, second_nK)

    def _compares_passes(self) -> bool:
        carrier = self.model.encoder if self.form == "encoder" else self.model
        return self.training and getattr(getattr(carrier, "base_model", None), "needs_two_passes", False)

    def _logits(self, hidden_nD: Tensor) -> Tensor:
        return head_logits(self.model, hidden_nD)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that belong to single tasks: an encoder's heads; none of a language model."""
        return [self.model.weight, self.model.bias] if self.form == "encoder" else []

    def _vocabulary(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]


@torch.no_grad()
def task_losses(
    model: LossModule, batches: Iterable[dict[str, Tensor]], aggregation: Aggregation, tasks: int, device: torch.device
) -> Tensor:
    """Return every task's mean loss over the micro-batches, as the aggregation means it; float64 [T].

    Dropout is off while this runs; the model is left as it was found. NaN where a task does not occur.

    Args:
        model: the losses of a backbone.
        batches: whole examples; none is split over micro-batches.
        aggregation: whether a task's loss is a mean over tokens or over examples.
        tasks: T.
        device: where the model computes.
    """
    training = model.training
    model.eval()
    loss_T = torch.zeros(tasks, dtype=torch.float64, device=device)
    total_T = torch.zeros(tasks, dtype=torch.float64, device=device)
    try:
        for batch in batches:
            task_N, example_N, _ = (ids.to(device) for ids in labelled(batch, model.form))
            unit_N, units_T = task_units(aggregation, count(task_N, example_N, tasks))
            nll_N = model({name: tensor.to(device) for name, tensor in batch.items()})
            loss_T.index_add_(0, task_N, (unit_N * nll_N).double())
            total_T += units_T
    finally:
        model.train(training)
    return loss_T / total_T
