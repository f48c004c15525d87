"""What a task is measured by.

Predictions and references are indices of choices (label, choose), texts (generate; a reference may be a tuple of texts,
of which the best counts) or numbers (regress). All values lie in 0..1 except pearson and spearman (-1..1), mse, and
bleu and chrf (0..100, as sacrebleu prints them).

Nothing to measure, or lists of different lengths, is a `ValueError`: the caller is at fault, not the user.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from multitune.errors import MultituneError, nearest
from multitune.tasks.code_bleu import codebleu_of
from multitune.tasks.python_source import same_code
from multitune.tasks.task import Kind, Task

Score = Callable[[Sequence[Any], Sequence[Any]], float]
PerExample = Callable[[Sequence[Any], Sequence[Any]], np.ndarray]

ENTRY_POINTS = "multitune.metrics"


@dataclass(frozen=True)
class Metric:
    """One way to measure answers.

    Attributes:
        name: as recipes call it.
        kinds: kinds of tasks that it measures.
        higher_is_better: whether more is better.
        score: (predictions, references) -> value.
        per_example: (predictions, references) -> float64 [N] whose mean is the score; None where it is no mean.
    """

    name: str
    kinds: tuple[Kind, ...]
    higher_is_better: bool
    score: Score
    per_example: PerExample | None = None


def metric(name: str) -> Metric:
    """Return a metric by its name: one of `METRICS`, or one that an installed package offers.

    A package offers a metric as an entry point of the group "multitune.metrics" that names a `Metric`.

    Raises:
        MultituneError: there is none of this name, or what the entry point names is not a `Metric`.
    """
    if name in METRICS:
        return METRICS[name]
    offered = _offered()
    if name not in offered:
        known = [*METRICS, *sorted(offered)]
        raise MultituneError(
            f"There is no metric '{name}'.{nearest(name, known)}",
            f"metric '{name}'",
            f"Use one of: {', '.join(known)}.",
        )
    found = offered[name].load()
    if not isinstance(found, Metric):
        raise MultituneError(
            f"The entry point '{name}' is a {type(found).__name__}, not a Metric.",
            f"{offered[name].value} ({ENTRY_POINTS})",
            "Let it name a multitune.tasks.metrics.Metric.",
        )
    return found


def metrics_of(task: Task) -> tuple[str, ...]:
    """Names of a task's metrics: its own, or the usual ones of its kind.

    Raises:
        ValueError: the task has no kind; resolve it first.
    """
    if task.kind is None:
        raise ValueError(f"task {task.name} has no kind; resolve it first")
    return task.metrics or DEFAULTS[task.kind]


def _offered() -> Mapping[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _paired(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions do not go with {len(references)} references")
    if not len(predictions):
        raise ValueError("there is nothing to measure")


def _mean_of(per_example: PerExample) -> Score:
    return lambda predictions, references: float(per_example(predictions, references).mean())


# Choices


def hits(predictions: Sequence[int], references: Sequence[int]) -> np.ndarray:
    """1 where the right choice was taken, else 0; float64 [N]."""
    _paired(predictions, references)
    return (np.asarray(predictions) == np.asarray(references)).astype(np.float64)


def macro_f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    The classes are those that occur among predictions or references, as in scikit-learn; one that was never both
    predicted and right counts 0.
    """
    _paired(predictions, references)
    classes = np.union1d(predictions, references)
    predicted = np.searchsorted(classes, predictions)
    right = np.searchsorted(classes, references)
    true_positives = np.bincount(right[predicted == right], minlength=len(classes))
    # 2 TP + FP + FN = times predicted + times right, never 0 for a class that occurs
    occurrences = np.bincount(predicted, minlength=len(classes)) + np.bincount(right, minlength=len(classes))
    return float(np.mean(2 * true_positives / occurrences))


# Texts


def _references(reference: str | Sequence[str]) -> Sequence[str]:
    if isinstance(reference, str):
        return (reference,)
    if not reference:
        raise ValueError("an example has no reference")
    return reference


def _best(compare: Callable[[str, str], float]) -> PerExample:
    """The best value over an example's references, for every example."""

    def per_example(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> np.ndarray:
        _paired(predictions, references)
        pairs = zip(predictions, references, strict=True)
        return np.array([max(compare(text, one) for one in _references(several)) for text, several in pairs], float)

    return per_example


def same_text(prediction: str, reference: str) -> float:
    """1 when two texts are equal but for the amount of white space; case and punctuation count."""
    return float(prediction.split() == reference.split())


def same_words(prediction: str, reference: str) -> float:
    """1 when two texts are equal in lower case and without punctuation, as Super-NaturalInstructions compares them."""
    return float(
        prediction.lower().translate(_PUNCTUATION).split() == reference.lower().translate(_PUNCTUATION).split()
    )


def same_squad_tokens(prediction: str, reference: str) -> float:
    """1 when two texts are equal in lower case, without punctuation and without articles, as SQuAD compares them."""
    return float(squad_tokens(prediction) == squad_tokens(reference))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares answers (arXiv:1606.05250)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words; 1 when both are empty, 0 when one is (SQuAD 2.0's rule)."""
    predicted, right = squad_tokens(prediction), squad_tokens(reference)
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


_WORDS = re.compile(r"[^\W_]+")


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-case words (Lin 2004, without stemming); 0 when one is empty."""
    predicted, right = _WORDS.findall(prediction.lower()), _WORDS.findall(reference.lower())
    if not predicted or not right:
        return 0.0
    return 2 * longest_common_subsequence(predicted, right) / (len(predicted) + len(right))


def rouge_l_stemmed(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of stemmed words, by the package rouge-score.

    Raises:
        MultituneError: it is not installed.
    """
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise MultituneError(
            f"ROUGE-L with stemming needs {error.name}, which is not installed.",
            "metric 'rouge_l_stemmed'",
            "Install it with `pip install 'multitune[rouge]'`, or use rouge_l, which does not stem.",
        ) from None
    return RougeScorer(["rougeL"], use_stemmer=True)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table per big integer (Hyyrö 2004).

    Bit j of V is 0 where the table's row grows at column j; so the zeros among len(a) bits are counted at the end.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    ones = (1 << len(a)) - 1
    V = ones
    for word in b:
        U = V & places.get(word, 0)
        V = ((V + U) | (V - U)) & ones
    return len(a) - V.bit_count()


_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]])[-−])?\s?[$€£]?\s?(?P<minus_after>(?<=[$€£])[-−])?"
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None: "so he pays $1,234.50." is 1234.50.

    After "####", which marks the answer in gsm8k, only what follows counts if it holds a number.
    """
    marked = text.rpartition("####")
    found = list(_NUMBER.finditer(marked[2])) or list(_NUMBER.finditer(marked[0]))
    if not found:
        return None
    minus = found[-1]["minus"] or found[-1]["minus_after"]
    try:
        number = Decimal(found[-1]["number"].replace(",", ""))
    except InvalidOperation:  # an exponent beyond any machine's range
        return None
    return -number if minus else number


def same_number(prediction: str, reference: str) -> float:
    """1 when the last numbers of both texts are equal in value; 0 when one text has none."""
    number = last_number(prediction)
    return float(number is not None and number == last_number(reference))


_PER_CENT = re.compile(r"\s*(?:%|per ?cent\b)")
CLOSE = Decimal("0.01")
"""Part of the right number by which an answer may be off."""


def close_number(prediction: str, reference: str) -> float:
    """1 when the last numbers agree as answers about money and reports do: within 1 %, or rounded as the reference is.

    12.5 %, 12.50% and 0.125 are the same: a per cent sign divides by 100. Where one of the two texts has the sign, the
    other's bare number counts in either unit. 0 when one text has no number, an empty answer among them.
    """
    found, right = _with_unit(prediction), _with_unit(reference)
    if found is None or right is None:
        return 0.0
    number, in_per_cent = found
    wanted, wanted_in_per_cent = right
    candidates = [number / 100 if in_per_cent else number]
    if in_per_cent != wanted_in_per_cent:
        candidates.append(number if in_per_cent else number / 100)
    value = wanted / 100 if wanted_in_per_cent else wanted
    exponent = value.as_tuple().exponent
    decimals = Decimal(1).scaleb(min(0, exponent if isinstance(exponent, int) else 0))
    return float(any(abs(one - value) <= CLOSE * abs(value) or _rounded(one, decimals) == value for one in candidates))


def _rounded(number: Decimal, decimals: Decimal) -> Decimal | None:
    try:
        return number.quantize(decimals)
    except InvalidOperation:  # more digits than a decimal holds: far from any right answer
        return None


def _with_unit(text: str) -> tuple[Decimal, bool] | None:
    """Return the last number of a text, and whether a per cent sign follows it."""
    number = last_number(text)
    if number is None:
        return None
    last = list(_NUMBER.finditer(text))[-1]
    return number, _PER_CENT.match(text, last.end()) is not None


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Corpus BLEU of sacrebleu with its default tokenisation; 0..100."""
    from sacrebleu.metrics import BLEU

    return float(BLEU().corpus_score(list(predictions), _reference_streams(predictions, references)).score)


def chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Corpus chrF2 of sacrebleu; 0..100."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(predictions), _reference_streams(predictions, references)).score)


def codebleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """CodeBLEU of a corpus of Python (`multitune.tasks.code_bleu`); of several references the nearest one counts."""
    _paired(predictions, references)
    nearest_ones = []
    for text, several in zip(predictions, map(_references, references), strict=True):
        values = [codebleu_of([text], [one]) for one in several]
        nearest_ones.append(several[values.index(max(values))])
    return codebleu_of(predictions, nearest_ones)


def _reference_streams(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[Any]]:
    """Stream i holds every example's i-th reference; None where it has fewer."""
    _paired(predictions, references)
    several = [list(_references(one)) for one in references]
    longest = max(map(len, several))
    return [[one[place] if place < len(one) else None for one in several] for place in range(longest)]


# Numbers


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side is constant, for then nothing of it is known."""
    _paired(predictions, references)
    x, y = (_centred(np.asarray(values, np.float64)) for values in (predictions, references))
    if not x.any() or not y.any():
        return 0.0
    r = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return float(np.clip(r, -1, 1))


def _centred(x: np.ndarray) -> np.ndarray:
    """The deviations from the mean on a scale of 1, exactly 0 for constant values."""
    if (x == x[0]).all():
        return np.zeros_like(x)
    deviations = x - x.mean()
    return deviations / np.abs(deviations).max()  # so that no square overflows or vanishes


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; 0 where one side is constant."""
    _paired(predictions, references)
    values = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if any(np.isnan(side).any() for side in values):
        return float("nan")
    return pearson(*(ranks(side).tolist() for side in values))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank; float64 [N]."""
    _, group, size = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2)[group]


def squared_errors(predictions: Sequence[float], references: Sequence[float]) -> np.ndarray:
    """(prediction - reference)^2; float64 [N]."""
    _paired(predictions, references)
    return (np.asarray(predictions, np.float64) - np.asarray(references, np.float64)) ** 2


def _of_means(name: str, kinds: tuple[Kind, ...], per_example: PerExample, higher_is_better: bool = True) -> Metric:
    return Metric(name, kinds, higher_is_better, _mean_of(per_example), per_example)


METRICS: dict[str, Metric] = {
    "accuracy": _of_means("accuracy", ("label", "choose"), hits),
    "macro_f1": Metric("macro_f1", ("label",), True, macro_f1),
    "exact_match": _of_means("exact_match", ("generate",), _best(same_text)),
    "exact_match_superni": _of_means("exact_match_superni", ("generate",), _best(same_words)),
    "exact_match_squad": _of_means("exact_match_squad", ("generate",), _best(same_squad_tokens)),
    "token_f1": _of_means("token_f1", ("generate",), _best(token_f1)),
    "rouge_l": _of_means("rouge_l", ("generate",), _best(rouge_l)),
    "rouge_l_stemmed": _of_means("rouge_l_stemmed", ("generate",), _best(rouge_l_stemmed)),
    "chrf": Metric("chrf", ("generate",), True, chrf),
    "bleu": Metric("bleu", ("generate",), True, bleu),
    "codebleu": Metric("codebleu", ("generate",), True, codebleu),
    "ast_match": _of_means("ast_match", ("generate",), _best(same_code)),
    "numeric_match": _of_means("numeric_match", ("generate",), _best(same_number)),
    "numeric_close": _of_means("numeric_close", ("generate",), _best(close_number)),
    "pearson": Metric("pearson", ("regress",), True, pearson),
    "spearman": Metric("spearman", ("regress",), True, spearman),
    "mse": _of_means("mse", ("regress",), squared_errors, higher_is_better=False),
}

DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "label": ("accuracy", "macro_f1"),
    "choose": ("accuracy",),
    "generate": ("exact_match",),
    "regress": ("pearson", "mse"),
}
"""Metrics of a task that names none; the first one stands for it in tables."""
