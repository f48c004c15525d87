"""Which words of a small model are those of the large one: by id, or by the tokens' texts where ids differ.

Shape legend: ``V`` shared words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multitune.errors import MultituneError

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
NAMED = 5  # words that an error names


@dataclass(frozen=True)
class SharedVocabulary:
    """The words of a large model that a small one knows.

    Attributes:
        words: the large model's ids 0 to words - 1 are shared.
        ids_V: the small model's id of each, int64; None where they are the same.
    """

    words: int
    ids_V: Tensor | None


def shared_vocabulary(large: Any, small: Any, widths: tuple[int, int], role: str) -> SharedVocabulary:
    """Return the words that two models share, matched by their texts; special tokens also by what they are for.

    Embeddings are often padded to a round number, and larger siblings have more added tokens: what lies above the last
    shared word is left out on both sides.

    Args:
        large, small: tokenizers.
        widths: rows of the two embeddings.
        role: of the small model, for the error.

    Raises:
        MultituneError: the large model has words that the small one has not, other than added tokens at the end.
    """
    text_of = {index: text for text, index in large.get_vocab().items() if index < widths[0]}
    index_of = {text: index for text, index in small.get_vocab().items() if index < widths[1]}
    twins = _twins_by_purpose(large, small)
    index_by_id = {i: index_of.get(text, index_of.get(twins.get(text, ""))) for i, text in text_of.items()}
    missing = sorted(i for i, index in index_by_id.items() if index is None)
    words = min(missing, default=max(text_of) + 1)
    added = large.added_tokens_decoder
    if any(i not in added for i in missing) or any(i > words for i in text_of if i not in missing):
        raise _different_words([text_of[i] for i in missing], len(text_of), role)
    # An id without a text is a hole in the large vocabulary: nothing is ever written there.
    ids = [index_by_id.get(i, min(i, widths[1] - 1)) for i in range(words)]
    return SharedVocabulary(words, None if ids == list(range(words)) else torch.tensor(ids))


def _twins_by_purpose(large: Any, small: Any) -> dict[str, str]:
    pairs = [(getattr(large, name), getattr(small, name)) for name in SPECIAL_TOKENS]
    return {ours: theirs for ours, theirs in pairs if ours is not None and theirs is not None}


def _different_words(missing: list[str], words: int, role: str) -> MultituneError:
    named = ", ".join(repr(text) for text in missing[:NAMED])
    return MultituneError(
        f"The {role} does not know {len(missing):,} of the large model's {words:,} words, {named} among them.",
        role,
        "Take small models of the large one's family: logits are fused word by word.",
    )
