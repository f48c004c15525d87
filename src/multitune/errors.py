"""The one error that users see: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MultituneError(Exception):
    """A user's mistake or a refused situation, told in three sentences.

    The command line prints it without a traceback and exits with code 2.

    Args:
        what: what is wrong, one sentence, with the offending value.
        where: file, line, key, task or step it concerns.
        mend: what to do about it, one sentence.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 2

    def __init__(self, what: str, where: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  mend:  {self.mend}"


class MultituneErrors(MultituneError):
    """Several mistakes found in one pass, reported together.

    Args:
        errors: at least one error; the first gives the summary.
    """

    def __init__(self, errors: Iterable[MultituneError]) -> None:
        self.errors = list(errors)
        first = self.errors[0]
        super().__init__(first.what, first.where, first.mend)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


WORDS_OF_OTHERS = {
    "lr": ("learning_rate",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "max_steps": ("steps",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "per_device_batch_size": ("micro_batch_size",),
    "gradient_accumulation_steps": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "cutoff_len": ("max_length",),
    "sequence_len": ("max_length",),
    "lr_scheduler_type": ("schedule",),
    "warmup_ratio": ("warmup",),
    "optim": ("optimizer",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "rank": ("r",),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "f1": ("macro_f1", "token_f1"),
    "base_model": ("model",),
    "model_name_or_path": ("model",),
    "datasets": ("tasks",),
    "dataset": ("tasks",),
}
"""What keys are called elsewhere (transformers, trl, Axolotl, LLaMA-Factory, peft), and what they are called here."""


def closest(word: str, allowed: Iterable[str]) -> list[str]:
    """Return the allowed words that are meant; none when none is close.

    A word that other trainers use stands for ours; any other one for the closest in spelling.
    """
    known = [str(a) for a in allowed]
    matches = [ours for ours in WORDS_OF_OTHERS.get(str(word), ()) if ours in known]
    return matches or difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the allowed words that are meant, or "" when none is close."""
    matches = closest(word, allowed)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
