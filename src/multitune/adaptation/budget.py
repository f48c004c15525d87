"""From a budget of trainable numbers to the largest adapter within it."""

from __future__ import annotations

from collections.abc import Callable

from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.methods import METHODS
from multitune.errors import MultituneError

LARGEST = 1 << 24
"""No adapter is tried beyond this size."""


def within_budget(
    config: AdaptationConfig, parameters: int, trainable: Callable[[AdaptationConfig], int]
) -> AdaptationConfig:
    """Return the config with the largest size whose trainable numbers do not exceed its budget; alone without one.

    Almost every method trains a + b size numbers: two sizes give a and b, hence the answer, and two more prove it.
    Where that fails (psoft grows with the square of its rank), the answer is searched between sizes that are known to
    fit and not to fit.

    Args:
        config: with or without a budget.
        parameters: of the base.
        trainable: how many numbers train under a config; grows with the size; a MultituneError means that no adapter
            can be so large.

    Raises:
        MultituneError: the smallest adapter is beyond the budget.
    """
    if config.budget is None:
        return config
    budget = int(config.budget * parameters if config.budget < 1 else config.budget)
    smallest = METHODS[config.method].smallest
    if METHODS[config.method].size is None:
        fixed = sized(config, None)
        if (numbers := trainable(fixed)) > budget:
            raise _too_small(config, budget, numbers)
        return fixed

    multiple = METHODS[config.method].multiple
    least = smallest // multiple  # sizes are counted in multiples from here on

    def numbers_of(multiples: int) -> int:
        return trainable(sized(config, multiples * multiple))

    def fits(multiples: int) -> bool:
        try:
            return numbers_of(multiples) <= budget
        except MultituneError:
            if multiples == least:
                raise
            return False

    if not fits(least):
        raise _too_small(config, budget, numbers_of(least))
    return sized(config, multiple * _largest(fits, least, _guess(least, budget, numbers_of)))


def sized(config: AdaptationConfig, size: int | None) -> AdaptationConfig:
    """Return the config at a size, without its budget; what follows the size follows it unless it is given."""
    method = METHODS[config.method]
    if size is None or method.size is None:
        return AdaptationConfig(method=config.method, **config.options)
    followers = {name: max(1, round(size * factor)) for name, factor in method.follows.items()}
    return AdaptationConfig(method=config.method, **{**followers, **config.options, method.size: size})


def _guess(least: int, budget: int, numbers_of: Callable[[int], int]) -> int:
    try:
        one, two = numbers_of(least), numbers_of(least + 1)
    except MultituneError:
        return least
    return min(LARGEST, least + (budget - one) // (two - one)) if two > one else least


def _largest(fits: Callable[[int], bool], smallest: int, guess: int) -> int:
    """Return the largest size that fits, from a good guess at it; the smallest does."""
    low, high = smallest, guess + 1
    if fits(guess):
        low, step = guess, 1
        while fits(low + step) and low + step < LARGEST:
            low, step = low + step, 2 * step
        high = low + step
    else:
        high = guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _too_small(config: AdaptationConfig, budget: int, smallest: int) -> MultituneError:
    method = METHODS[config.method]
    size = f" ({method.size}: {method.smallest})" if method.size else ""
    return MultituneError(
        f"A budget of {budget:,} numbers is too small for {config.method}, which trains {smallest:,} at least{size}.",
        "adapt.budget",
        f"Raise it to {smallest}, narrow target_modules, or take a smaller method: see multitune methods.",
    )
