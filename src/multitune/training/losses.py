"""The backbone as a module of losses: batch in, one loss per labelled token (or per example) out.

The wrapper exists because DistributedDataParallel and FSDP synchronise only what passes through ``forward``.

Shape legend: ``B`` rows, ``S`` positions, ``N`` labelled tokens (encoders: examples).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from multitune.models.heads import head_losses
from multitune.models.hidden import head_logits, hidden_states
from multitune.models.loading import Backbone
from multitune.objectives.token_loss import IGNORED, next_token_positions, token_nll
from multitune.tasks.task import Form


class Labelled(NamedTuple):
    """Where a micro-batch carries loss: task and example of every labelled token, both int64 [N]."""

    task_N: Tensor
    example_N: Tensor


def labelled(batch: dict[str, Tensor], form: Form) -> Labelled:
    """Return task and example ids of the labelled tokens, in the order in which the losses module returns them."""
    if form == "encoder":
        present_B = batch["task_ids"] >= 0
        return Labelled(batch["task_ids"][present_B], batch["example_ids"][present_B])
    mask_BS = next_token_positions(batch["labels"])[0] if form == "causal" else batch["labels"] != IGNORED
    return Labelled(batch["task_ids"][mask_BS], batch["example_ids"][mask_BS])


class LossModule(nn.Module):
    """Wraps a backbone so that ``forward`` returns the loss of every labelled token, float32 [N]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.form = backbone.form

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute -log p of every labelled token; for encoders cross-entropy or squared error of every example."""
        if self.form == "encoder":
            return head_losses(self.model, batch)
        hidden_BSD = hidden_states(self.model, batch)
        if self.form == "causal":
            mask_BS, labels_N = next_token_positions(batch["labels"])
        else:
            mask_BS = batch["labels"] != IGNORED
            labels_N = batch["labels"][mask_BS]
        return token_nll(hidden_BSD[mask_BS], labels_N, lambda h: head_logits(self.model, h), self._vocabulary())

    def _vocabulary(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]
