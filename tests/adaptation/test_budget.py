"""A budget of trainable numbers becomes the largest adapter within it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from multitune.adaptation import AdaptationConfig
from multitune.adaptation.budget import sized, within_budget
from multitune.errors import MultituneError


def prompt_numbers(config: AdaptationConfig) -> int:
    """Prompt tuning at the width of T5-base."""
    return config.options["num_virtual_tokens"] * 768


def test_the_worked_case_of_prompt_tuning():
    config = AdaptationConfig(method="prompt_tuning", budget=76_800)
    assert within_budget(config, 220_000_000, prompt_numbers).options == {"num_virtual_tokens": 100}


@pytest.mark.parametrize(("budget", "tokens"), [(768, 1), (1535, 1), (1536, 2), (76_799, 99), (0.5, 500)])
def test_the_largest_size_within_the_budget_is_taken(budget, tokens):
    config = AdaptationConfig(method="prompt_tuning", budget=budget)
    assert within_budget(config, 768_000, prompt_numbers).options == {"num_virtual_tokens": tokens}


@pytest.mark.parametrize("growth", [lambda r: r * (r + 3) // 2, lambda r: 10 * (r // 4) + r, lambda r: r**3])
@pytest.mark.parametrize("budget", [5, 100, 12_345])
def test_sizes_that_do_not_grow_evenly_are_found_too(growth, budget):
    found = within_budget(
        AdaptationConfig(method="psoft", budget=budget), 10**9, lambda config: growth(config.options["r"])
    )
    assert growth(found.options["r"]) <= budget < growth(found.options["r"] + 1)


def test_a_size_that_cannot_be_placed_is_the_limit():
    def trainable(config):
        if config.options["n_frequency"] > 90:
            raise MultituneError("too many", "here", "fewer")
        return config.options["n_frequency"]

    assert within_budget(AdaptationConfig(method="waveft", budget=1000), 10**6, trainable).options["n_frequency"] == 90


def test_what_follows_the_size_follows_it_unless_it_is_given():
    assert sized(AdaptationConfig(method="lora", budget=9), 4).options == {"r": 4, "lora_alpha": 8}
    assert sized(AdaptationConfig(method="lora", lora_alpha=5, budget=9), 4).options == {"r": 4, "lora_alpha": 5}
    assert sized(AdaptationConfig(method="adalora", budget=9), 6).options == {"init_r": 6, "target_r": 4}


def test_a_budget_below_the_smallest_adapter_is_refused_with_the_smallest():
    with pytest.raises(MultituneError, match=r"too small for prompt_tuning, which trains 768 at least \(num_virtual"):
        within_budget(AdaptationConfig(method="prompt_tuning", budget=700), 10**6, prompt_numbers)


def test_a_method_without_a_size_fits_or_not():
    ia3 = AdaptationConfig(method="ia3", budget=200)
    assert within_budget(ia3, 10**6, lambda config: 200).budget is None
    with pytest.raises(MultituneError, match="too small for ia3, which trains 201 at least"):
        within_budget(ia3, 10**6, lambda config: 201)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "full", "budget": 5}, "no size that a budget"),
        ({"method": "lora", "budget": 5, "r": 2}, "Both budget and r"),
        ({"method": "lora", "budget": 0}, "greater than 0"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        AdaptationConfig(**options)


def test_reflections_come_in_pairs():
    config = AdaptationConfig(method="hra", budget=75)
    assert within_budget(config, 10**6, lambda sized: 10 * sized.options["r"]).options == {"r": 6}
    with pytest.raises(MultituneError, match=r"trains 20 at least \(r: 2\)"):
        within_budget(AdaptationConfig(method="hra", budget=19), 10**6, lambda sized: 10 * sized.options["r"])
