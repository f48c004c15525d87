"""Prompt-based fine-tuning, prediction, and continued pre-training of one language model.

Shape legend: ``B`` rows, ``S`` positions, ``C`` classes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from multitune.errors import MultituneError
from multitune.mixing.shuffling import seed_of
from multitune.models.positions import usable_positions
from multitune.prompting.config import FineTuning, Pretraining
from multitune.prompting.encoding import PromptEncoder, around, tokens_of_texts
from multitune.prompting.model import IGNORED, PromptForMaskedLM, TokenLoss, predicted_values
from multitune.prompting.row_trainer import Batch, Look, Trained, train_rows
from multitune.prompting.template import Row

logger = logging.getLogger("multitune.prompting")

ROWS_AT_ONCE = 64


def targets_of(encoder: PromptEncoder, labels: Sequence[Any]) -> list[float]:
    """Return classes, or the values of a regression, of the rows' own labels.

    Raises:
        MultituneError: a label without a word, a value outside the bounds.
    """
    read = encoder.verbalizer.index if encoder.verbalizer.bounds is None else encoder.verbalizer.value
    return [read(label, f"row {n}") for n, label in enumerate(labels, start=1)]


def fine_tune(
    model: Any,
    encoder: PromptEncoder,
    train: tuple[Sequence[Row], Sequence[float]],
    development: tuple[Sequence[Row], Sequence[float]] | None,
    config: FineTuning,
    folder: Path,
    *,
    seed: int,
) -> Trained:
    """Train all of the model's parameters that require gradients to answer with the right label words, in place.

    Args:
        model: with a language-model head.
        encoder: of the prompt.
        train: rows, and their classes or values.
        development: the same of other rows, by which step and learning rate are chosen; None: the last step of the only
            rate is kept.
        config: steps, rates, optimiser.
        folder: receives logs, checkpoints and the best weights.
        seed: of order and dropout.

    Raises:
        MultituneError: rates to choose among without development rows; see ``train_rows``.
    """
    if len(config.learning_rates) > 1 and development is None:
        raise MultituneError(
            "Several learning rates are to be compared, and there are no development rows.",
            "learning_rates",
            "Give one rate, or rows to choose by; never choose by test rows.",
        )
    length = _length(model, config.max_length)
    answering = PromptForMaskedLM.of(model, encoder, official_loss=config.official_loss)
    ids, targets = encoder.encode(train[0], length), list(train[1])
    dtype = torch.long if encoder.verbalizer.bounds is None else torch.float32

    def make(rows: Sequence[int], seed: int) -> Batch:
        labels = torch.tensor([targets[row] for row in rows], dtype=dtype)
        return {
            **padded([ids[row] for row in rows], encoder.tokenizer, _device(model)),
            "labels": labels.to(_device(model)),
        }

    look = None
    if development is not None:
        seen, wanted = encoder.encode(development[0], length), list(development[1])

        def measure() -> float:
            return agreement(_predicted(answering, seen, encoder), wanted, encoder)

        look = Look(measure, "on development rows", config.evaluate_every, larger_is_better=True)
    identity = digest([ids, targets, weights_digest(model)])
    start = copy.deepcopy(model.state_dict()) if len(config.learning_rates) > 1 else None
    found: dict[float, Trained] = {}
    best: Any = None
    for rate in config.learning_rates:
        if start is not None:
            model.load_state_dict(start)
        found[rate] = train_rows(
            answering,
            len(ids),
            make,
            config,
            folder / f"rate-{rate:g}",
            steps=config.steps,
            learning_rate=rate,
            seed=seed,
            identity=identity,
            look=look,
        )
        score = found[rate].best
        if start is not None and (best is None or (score or 0) > best[0]):
            best = (score or 0, rate, copy.deepcopy(model.state_dict()))
    model.eval()
    if best is None:
        return found[config.learning_rates[0]]
    model.load_state_dict(best[2])
    logger.info("learning rate %g is the best on the development rows: %.4f", best[1], best[0])
    return found[best[1]]


def predict(model: Any, encoder: PromptEncoder, rows: Sequence[Row], max_length: int = 128) -> list[float]:
    """Return the likeliest class of every row, or its value; without any threshold."""
    answering = PromptForMaskedLM.of(model, encoder)
    return _predicted(answering, encoder.encode(rows, _length(model, max_length)), encoder)


@torch.no_grad()
def _predicted(answering: PromptForMaskedLM, ids: Sequence[list[int]], encoder: PromptEncoder) -> list[float]:
    training = answering.training
    answering.eval()
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # little padding
    found: dict[int, float] = {}
    for start in range(0, len(order), ROWS_AT_ONCE):
        places = order[start : start + ROWS_AT_ONCE]
        batch = padded([ids[n] for n in places], encoder.tokenizer, _device(answering.model))
        logits_BC = answering(**batch).logits
        if answering.bounds is None:
            values = logits_BC.argmax(-1).tolist()
        else:
            values = predicted_values(logits_BC, answering.bounds).tolist()
        found |= dict(zip(places, values, strict=True))
    answering.train(training)
    return [found[n] for n in range(len(ids))]


def agreement(predictions: Sequence[float], wanted: Sequence[float], encoder: PromptEncoder) -> float:
    """Return the accuracy, or Pearson's correlation of values (0 where one of the two does not vary)."""
    if encoder.verbalizer.bounds is None:
        return float(np.mean(np.asarray(predictions) == np.asarray(wanted)))
    if np.std(predictions) == 0 or np.std(wanted) == 0:
        return 0.0
    return float(np.corrcoef(predictions, wanted)[0, 1])


def continue_pretraining(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    config: Pretraining,
    folder: Path,
    *,
    seed: int,
    development: Sequence[str] = (),
    causal: bool = False,
) -> Trained:
    """Go on with the model's own training on lines of text, in place; resume by itself.

    A masked language model predicts tokens that transformers' DataCollatorForLanguageModeling masks, anew every time; a
    causal one the next token. The vocabulary projection is computed at predicted positions alone.

    Args:
        model: with a language-model head; the original checkpoint, not one that was tuned for the task.
        tokenizer: of the model.
        lines: each a sequence of its own.
        config: length, batches, optimiser, share of masked tokens.
        folder: receives log, checkpoints and the best weights.
        seed: of order, masks and dropout.
        development: lines on which the loss is looked at, with masks that stay the same; the best look's weights are
            kept. None of them: the last step's.
        causal: whether the model predicts the next token.

    Raises:
        MultituneError: an empty corpus, a tokenizer without mask, a loss that is not finite.
    """
    if not any(line.strip() for line in lines):
        raise MultituneError("The corpus is empty.", str(folder), "Give lines with text.")
    if not causal and tokenizer.mask_token_id is None:
        raise MultituneError(
            "The tokenizer has no mask token, so nothing can be masked.",
            f"tokenizer {tokenizer.name_or_path}",
            "Take a masked language model such as roberta-large, or load it as a causal one.",
        )
    length = _length(model, config.max_length)
    ids, held_out = (encode_lines(tokenizer, each, length) for each in (lines, development))
    steps = config.steps
    if steps is None:
        steps = math.ceil(config.epochs * len(ids) / (config.batch_size * config.accumulation))
    masker = Masker(tokenizer, config, causal, _device(model))
    losses = TokenLoss(model)

    def make(rows: Sequence[int], seed: int) -> Batch:
        return masker([ids[row] for row in rows], seed)

    def measure() -> float:
        return held_out_loss(losses, masker, held_out, seed)

    look = Look(measure, "loss on development lines", config.evaluate_every, larger_is_better=False)
    return train_rows(
        losses,
        len(ids),
        make,
        config,
        folder,
        steps=steps,
        learning_rate=config.learning_rate,
        seed=seed,
        identity=digest([ids, held_out, causal, weights_digest(model)]),
        look=look if held_out else None,
    )


@torch.no_grad()
def held_out_loss(losses: TokenLoss, masker: Masker, ids: Sequence[list[int]], seed: int) -> float:
    """Return the nats per predicted token of held-out lines, with masks that depend on the seed alone."""
    total, count = 0.0, 0
    for start in range(0, len(ids), ROWS_AT_ONCE):
        batch = masker(ids[start : start + ROWS_AT_ONCE], seed_of("held out", start, seed) % 2**63)
        labels = int((batch["labels"] != IGNORED).sum())
        total += float(losses(**batch).loss) * labels
        count += labels
    return total / max(count, 1)


class Masker:
    """Makes batches for language modelling; the masks depend on the given seed alone.

    Args:
        tokenizer: of the model.
        config: share of masked tokens.
        causal: whether the next token is predicted in place of masked ones.
        device: of the batches.
    """

    def __init__(self, tokenizer: Any, config: Pretraining, causal: bool, device: torch.device) -> None:
        self.collate = DataCollatorForLanguageModeling(
            tokenizer, mlm=not causal, mlm_probability=config.mask_probability, seed=0
        )
        self.tokenizer, self.causal, self.device = tokenizer, causal, device
        self.first = len(around(tokenizer)[0]) if config.always_mask_label and not causal else None

    def __call__(self, ids: Sequence[list[int]], seed: int) -> Batch:
        """Return input_ids, attention_mask and labels [B, S]; labels stand where they are predicted."""
        generator = torch.Generator().manual_seed(seed)
        self.collate.generator = generator
        prefix, suffix = around(self.tokenizer)
        rows = [
            {
                "input_ids": row,
                "special_tokens_mask": [1] * len(prefix)
                + [0] * (len(row) - len(prefix) - len(suffix))
                + [1] * len(suffix),
            }
            for row in ids
        ]
        batch = dict(self.collate(rows))
        if "attention_mask" not in batch:
            lengths = torch.tensor([len(row) for row in ids])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        if self.causal:
            labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)
            batch["labels"] = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        elif self.first is not None:
            self._mask_first(batch, ids)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _mask_first(self, batch: Batch, ids: Sequence[list[int]]) -> None:
        assert self.first is not None
        batch["labels"][:, self.first] = torch.tensor([row[self.first] for row in ids])
        batch["input_ids"][:, self.first] = self.tokenizer.mask_token_id


def encode_lines(tokenizer: Any, lines: Sequence[str], max_length: int) -> list[list[int]]:
    """Return the token ids of lines, read as behind a space; too long ones are cut at the end, and counted."""
    prefix, suffix = around(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    tokens = [ids for ids in tokens_of_texts(tokenizer, lines) if ids]
    if too_long := sum(len(ids) > room for ids in tokens):
        logger.warning(
            "%d of %d lines are longer than %d tokens and are cut at the end", too_long, len(tokens), max_length
        )
    return [[*prefix, *ids[:room], *suffix] for ids in tokens]


def padded(ids: Sequence[list[int]], tokenizer: Any, device: torch.device) -> Batch:
    """Return input_ids and attention_mask [B, S], padded on the right."""
    width = max(map(len, ids))
    input_ids = torch.full((len(ids), width), tokenizer.pad_token_id)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for row, each in enumerate(ids):
        input_ids[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def digest(value: Any) -> str:
    """Return a digest of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_digest(model: Any) -> str:
    """Return a digest of all parameters, so that a run from other weights is not taken for the same."""
    sums = [(name, tuple(p.shape), float(p.detach().double().sum())) for name, p in model.named_parameters()]
    return digest(sums)


def _length(model: Any, wanted: int | None) -> int:
    positions = usable_positions(model)
    return min(length for length in (wanted, positions, 100_000) if length)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
