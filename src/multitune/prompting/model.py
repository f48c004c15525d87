"""A language model that answers with label words, and the loss of its own training; both skip the rest of the logits.

Shape legend: ``B`` rows, ``S`` positions, ``N`` chosen positions, ``V`` vocabulary, ``C`` classes, ``D`` width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from multitune.prompting.encoding import PromptEncoder

logger = logging.getLogger("multitune.prompting")

IGNORED = -100
AGREEMENT = 1e-3
"""Largest difference from the model's own logits, in their standard deviations."""

_HEAD_COMES_LAST: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class PromptForMaskedLM(nn.Module):
    """Answers with the label words at the mask; all of the model's parameters train, none is added.

    Class logits are the language model's logits at the mask, of the label words alone: the vocabulary projection is
    computed at these positions and for these words, which saves B S V numbers.

    Args:
        model: a transformers model with a masked language-model head, bare or in peft; or a causal one.
        label_ids: token id of every class's word.
        mask_id: None for a causal model, whose answer follows a row's last token.
        bounds: (lowest, highest) value of a regression by two words.
        official_loss: of a regression, the loss of the authors' code in place of the divergence, see ``value_loss``.
    """

    label_ids: Tensor

    def __init__(
        self,
        model: Any,
        label_ids: Sequence[int],
        mask_id: int | None,
        bounds: tuple[float, float] | None = None,
        *,
        official_loss: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.mask_id, self.bounds, self.official_loss = model, mask_id, bounds, official_loss
        self.register_buffer("label_ids", torch.tensor(list(label_ids), device=_device(model)), persistent=False)

    @classmethod
    def of(cls, model: Any, encoder: PromptEncoder, *, official_loss: bool = False) -> PromptForMaskedLM:
        """Return the model that answers an encoder's prompts."""
        bounds = encoder.verbalizer.bounds
        return cls(model, encoder.label_ids, encoder.mask_id, bounds, official_loss=official_loss)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        """Return class logits [B, C] and, with labels, the mean loss.

        Args:
            input_ids, attention_mask: [B, S], padded on the right, with one mask in every row.
            labels: [B], classes or values.
        """
        place_B = self._places(input_ids, attention_mask)
        row_B = torch.arange(len(input_ids), device=input_ids.device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits_BC = logits_at(self.model, inputs, row_B, place_B, self.label_ids).float()
        if labels is None:
            return SequenceClassifierOutput(logits=logits_BC)
        if self.bounds is None:
            loss = F.cross_entropy(logits_BC, labels)
        else:
            loss = value_loss(logits_BC, labels, self.bounds, official=self.official_loss)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)

    def _places(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.mask_id is None:
            return attention_mask.sum(1) - 1
        found = input_ids == self.mask_id
        if not bool((found.sum(1) == 1).all()):
            raise ValueError("every row needs exactly one mask")
        return found.int().argmax(1)


def value_target(value_B: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return the wanted probabilities (1 - u, u) of the two words, u = (value - low) / (high - low); [B, 2]."""
    low, high = bounds
    share_B = (value_B - low) / (high - low)
    return torch.stack([1 - share_B, share_B], dim=-1)


def value_loss(logits_B2: Tensor, value_B: Tensor, bounds: tuple[float, float], *, official: bool = False) -> Tensor:
    """Return the Kullback-Leibler divergence of the predicted from the wanted probabilities, mean over rows.

    Args:
        official: what the authors' code computes: it gives probabilities to a function that was told to expect their
            logarithms, and takes the mean over rows and words. It is no divergence and not 0 at its best.
    """
    log_p_B2 = F.log_softmax(logits_B2, dim=-1)
    target_B2 = value_target(value_B.to(logits_B2.dtype), bounds)
    if official:
        return F.kl_div(log_p_B2, target_B2, log_target=True, reduction="sum") / log_p_B2.numel()
    return F.kl_div(log_p_B2, target_B2, reduction="batchmean")


def predicted_values(logits_B2: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return low + (high - low) p(second word); [B]."""
    low, high = bounds
    return low + (high - low) * logits_B2.softmax(-1)[:, 1]


class TokenLoss(nn.Module):
    """The loss of language modelling over labelled positions alone.

    Args:
        model: a transformers model with a language-model head.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        """Return the mean cross-entropy; ``labels`` [B, S] stand where they are predicted, -100 elsewhere."""
        row_N, place_N = (labels != IGNORED).nonzero(as_tuple=True)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits_NV = logits_at(self.model, inputs, row_N, place_N).float()
        wanted_N = labels[row_N, place_N]
        # no token of a small batch may have been chosen: its loss is 0, with gradients of 0
        loss = F.cross_entropy(logits_NV, wanted_N) if len(wanted_N) else logits_NV.sum()
        return SequenceClassifierOutput(loss=loss)


def logits_at(
    model: Any, inputs: dict[str, Tensor], row_N: Tensor, place_N: Tensor, token_ids: Tensor | None = None
) -> Tensor:
    """Return the model's logits at chosen positions, of all tokens or of some; [N, V] or [N, C].

    Equal to the same entries of the model's own logits. Where the output layer is a plain linear one, only these
    entries are computed; else all are, and the rest is dropped.
    """
    head = model.get_output_embeddings()
    if _is_plain(head) and _head_comes_last(model):
        with _only(head, row_N, place_N, token_ids):
            return model(**inputs, **_no_cache(model)).logits
    logits_NV = model(**inputs, **_no_cache(model)).logits[row_N, place_N]
    return logits_NV if token_ids is None else logits_NV[:, token_ids]


@contextmanager
def _only(head: nn.Linear, row_N: Tensor, place_N: Tensor, token_ids: Tensor | None) -> Iterator[None]:
    """Let the output layer compute chosen positions and tokens while the model runs."""

    def chosen(hidden_BSD: Tensor) -> Tensor:
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if token_ids is not None:
            weight, bias = weight[token_ids], None if bias is None else bias[token_ids]
        return F.linear(hidden_BSD[row_N, place_N], weight, bias)

    head.forward = chosen  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward  # the class's own shows again


def _is_plain(head: Any) -> bool:
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


@torch.no_grad()
def _head_comes_last(model: Any) -> bool:
    """Return whether what the output layer gives is what the model returns; found once per model."""
    if model in _HEAD_COMES_LAST:
        return _HEAD_COMES_LAST[model]
    training, device = model.training, _device(model)
    model.eval()
    ids = torch.arange(6, device=device).reshape(2, 3) % model.get_output_embeddings().weight.shape[0]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    row_N, place_N = torch.tensor([0, 1], device=device), torch.tensor([2, 0], device=device)
    token_ids = torch.tensor([3, 1], device=device)
    try:
        expected = model(**inputs, **_no_cache(model)).logits[row_N, place_N][:, token_ids]
        with _only(model.get_output_embeddings(), row_N, place_N, token_ids):
            got = model(**inputs, **_no_cache(model)).logits
        scale = max(float(expected.float().std()), 1e-6)
        found = got.shape == expected.shape and float((got - expected).abs().max()) <= AGREEMENT * scale
    except (TypeError, ValueError, RuntimeError, IndexError):
        found = False
    finally:
        model.train(training)
    if not found:
        logger.warning("the head of %s is not known here: its logits are computed everywhere", type(model).__name__)
    _HEAD_COMES_LAST[model] = found
    return found


def _no_cache(model: Any) -> dict[str, Any]:
    """Keep a causal model from returning keys and values that nobody reads."""
    return {"use_cache": False} if getattr(model.config, "is_decoder", False) or _is_causal(model) else {}


def _is_causal(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
