"""CodeBLEU of Python: n-grams, n-grams in which keywords weigh more, syntax, and data flow (arXiv:2009.10297).

As the package codebleu 0.7.0 reckons it where that can be: words are what white space parts; a text shorter than n
words counts an n-gram of probability 0.1 / 1; sums are made over the corpus before anything is divided. Syntax trees
are Python's own instead of tree-sitter's, so that two parts differ in places: docs/code-generation.md says where.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from multitune.tasks.data_flow import Flow, data_flow
from multitune.tasks.python_source import parsed, shapes

KEYWORDS = frozenset((*keyword.kwlist, "match", "case", "type"))
KEYWORD_WEIGHT, OTHER_WEIGHT = 1.0, 0.2
LONGEST_NGRAM = 4
SMOOTHING = 0.1
"""What a count of no common n-gram becomes (Chen and Cherry 2014, method 1)."""

PARTS = ("bleu", "weighted_bleu", "syntax", "data_flow")

# One example: common and all n-grams of the prediction, common and all weighted n-grams of the reference, both lengths,
# common and all sub-trees of the reference, common and all flows of it.
_COMMON, _ALL = slice(0, 4), slice(4, 8)
_WEIGHTED_COMMON, _WEIGHTED_ALL = slice(8, 12), slice(12, 16)
_LENGTH, _REFERENCE_LENGTH = 16, 17
_TREES_COMMON, _TREES, _FLOWS_COMMON, _FLOWS = 18, 19, 20, 21
_SIZE = 22


def codebleu_parts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the four parts of the CodeBLEU of a corpus by PARTS, each in 0..1.

    A corpus whose references have no data flow has a data flow of 1. What does not parse has no tree and no flow in
    common with anything; a reference that does not parse is one tree, which only the same text has too.
    """
    total = np.sum([_counts(p, r) for p, r in zip(predictions, references, strict=True)], axis=0)
    flows = total[_FLOWS_COMMON] / total[_FLOWS] if total[_FLOWS] else 1.0
    brevity = min(1.0, math.exp(1 - total[_REFERENCE_LENGTH] / total[_LENGTH])) if total[_LENGTH] else 0.0
    return {
        "bleu": brevity * _mean_share(total[_COMMON], total[_ALL]),
        # a recall, which a short text loses by itself
        "weighted_bleu": _mean_share(total[_WEIGHTED_COMMON], total[_WEIGHTED_ALL]),
        "syntax": float(total[_TREES_COMMON] / total[_TREES]),
        "data_flow": float(flows),
    }


def codebleu_of(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the mean of the four parts of a corpus, 0..1."""
    return math.fsum(codebleu_parts(predictions, references).values()) / len(PARTS)


def _mean_share(common_n: np.ndarray, all_n: np.ndarray) -> float:
    """prod_n p_n^(1/4) of the shares p_n of common n-grams, 0 where not even one word is common."""
    if common_n[0] == 0:
        return 0.0
    return math.exp(float(np.log(np.where(common_n == 0, SMOOTHING, common_n) / all_n).mean()))


@lru_cache(maxsize=20_000)
def _counts(prediction: str, reference: str) -> np.ndarray:
    """Return what one pair adds to the sums of a corpus, float64 [22]; kept, since intervals resample the pairs."""
    counts = np.zeros(_SIZE)
    words, right = prediction.split(), reference.split()
    counts[_LENGTH], counts[_REFERENCE_LENGTH] = len(words), len(right)
    for n in range(1, LONGEST_NGRAM + 1):
        mine, theirs = _ngrams(words, n), _ngrams(right, n)
        common = mine & theirs
        counts[_COMMON][n - 1], counts[_ALL][n - 1] = common.total(), max(1, mine.total())
        weight = _weight if n == 1 else _one
        counts[_WEIGHTED_COMMON][n - 1] = math.fsum(weight(gram) * count for gram, count in common.items())
        counts[_WEIGHTED_ALL][n - 1] = max(1.0, math.fsum(weight(gram) * count for gram, count in theirs.items()))
    counts[_TREES_COMMON:] = _tree_counts(prediction, reference)
    counts.setflags(write=False)
    return counts


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _weight(gram: tuple[str, ...]) -> float:
    return KEYWORD_WEIGHT if gram[0] in KEYWORDS else OTHER_WEIGHT


def _one(gram: tuple[str, ...]) -> float:
    return 1.0


def _tree_counts(prediction: str, reference: str) -> tuple[int, int, int, int]:
    """Return the sub-trees of the reference that the prediction has, all of them, and the same of its flows."""
    tree, right = parsed(prediction), parsed(reference)
    same = int(prediction.strip() == reference.strip())
    if right is None:
        return same, 1, 0, 0
    known: dict[tuple[object, ...], int] = {}
    try:
        wanted, flows = shapes(right, known), Counter(data_flow(right))
        mine, mine_flows = _of(tree, known)
    except RecursionError:  # deeper than Python can go, though its parser could
        return same, 1, 0, 0
    return sum(shape in mine for shape in wanted), len(wanted), (flows & mine_flows).total(), flows.total()


def _of(tree: ast.Module | None, known: dict[tuple[object, ...], int]) -> tuple[set[int], Counter[Flow]]:
    return (set(), Counter()) if tree is None else (set(shapes(tree, known)), Counter(data_flow(tree)))
