"""How log-probabilities of choices of several lengths are compared: five answers to it, from the same numbers.

Log-probabilities of K choices c of T tokens after a context C, A being the answer context:

    none           sum_t log p(c_t | C, c_<t)
    token          the same / T                        (Brown et al. 2020, section 2.4)
    character      the same / letters of c             (what other harnesses call acc_norm)
    byte           the same / bytes of c in UTF-8
    unconditional  the same - sum_t log p(c_t | A, c_<t)   (Brown et al. 2020: ARC, OpenBookQA, RACE)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

Normalisation = Literal["none", "token", "character", "byte", "unconditional"]


@dataclass(frozen=True)
class ChoiceScores:
    """What is known of the choices of one row.

    Attributes:
        log_p_K: log p(choice | context) in nats, float64 [K].
        token_K: tokens of every choice, int64 [K].
        texts: the choices.
        prior_K: log p(choice | answer context), float64 [K]; None where nobody asked for it.
    """

    log_p_K: np.ndarray
    token_K: np.ndarray
    texts: Sequence[str]
    prior_K: np.ndarray | None = None


def per_token(one: ChoiceScores) -> np.ndarray:
    """Return log-probabilities per token, float64 [K]."""
    return one.log_p_K / one.token_K


def per_character(one: ChoiceScores) -> np.ndarray:
    """Return log-probabilities per letter, float64 [K]."""
    return one.log_p_K / np.array([len(text) for text in one.texts])


def per_byte(one: ChoiceScores) -> np.ndarray:
    """Return log-probabilities per byte, float64 [K]."""
    return one.log_p_K / np.array([len(text.encode()) for text in one.texts])


def unconditional(one: ChoiceScores) -> np.ndarray:
    """Return log p(c | C) / p(c | A): what the context adds to a choice, float64 [K]."""
    if one.prior_K is None:
        raise ValueError("the unconditional normalisation needs log p(choice | answer context)")
    return one.log_p_K - one.prior_K


NORMALISATIONS: dict[Normalisation, Callable[[ChoiceScores], np.ndarray]] = {
    "none": lambda one: one.log_p_K,
    "token": per_token,
    "character": per_character,
    "byte": per_byte,
    "unconditional": unconditional,
}


def best_choice(one: ChoiceScores, normalisation: Normalisation) -> int:
    """Return the place of the best choice; the first of equals."""
    return int(NORMALISATIONS[normalisation](one).argmax())


def priors(
    backbone: Backbone, choices: Sequence[Sequence[Sequence[int]]], answer_context: str, *, batch_tokens: int
) -> list[np.ndarray]:
    """Return log p(choice | answer context) for every row's choices, float64 [K] each; every distinct choice once.

    Args:
        backbone: a causal or encoder-decoder LM.
        choices: token ids of every row's choices.
        answer_context: "Answer:", or "" for the model's beginning of a text.
        batch_tokens: see ``choices.choice_log_probabilities``.
    """
    from multitune.mixing.chats import ids_of
    from multitune.mixing.encoding import prompt_affixes
    from multitune.scoring.choices import choice_log_probabilities

    before, after = prompt_affixes(backbone.tokenizer, backbone.form)
    prompt = [*before, *(ids_of([answer_context], backbone.tokenizer)[0] if answer_context else []), *after]
    distinct = list({tuple(choice): None for one in choices for choice in one})
    (log_p,) = choice_log_probabilities(backbone, [prompt], [distinct], batch_tokens=batch_tokens)
    known = dict(zip(distinct, log_p.tolist(), strict=True))
    return [np.array([known[tuple(choice)] for choice in one]) for one in choices]
