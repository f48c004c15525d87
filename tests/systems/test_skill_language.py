"""The tiny language of the small reproductions."""

from __future__ import annotations

import pytest
import torch

from multitune.systems import skill_language as language


def test_rows_are_marker_prompt_answer_end() -> None:
    input_ids, labels = language.encode(language.rotate_and_add(3), torch.tensor([[0, 1, 2, 39]]))
    symbols = [symbol + language.FIRST_SYMBOL for symbol in (0, 1, 2, 39, 14, 15, 12, 13)]
    assert input_ids.tolist() == [[5, *symbols, language.END]]
    assert labels.tolist() == [[-100] * 5 + [*symbols[4:], language.END]]


@pytest.mark.parametrize(
    ("skill", "answer"),
    [
        (language.copy(0), [5, 39, 0, 7]),
        (language.reverse(0), [7, 0, 39, 5]),
        (language.add_seven(0), [12, 6, 7, 14]),
        (language.triple_reversed(0), [21, 0, 37, 15]),
    ],
)
def test_skills(skill: language.Skill, answer: list[int]) -> None:
    assert skill.answer(torch.tensor([[5, 39, 0, 7]])).tolist() == [answer]


def test_sorting() -> None:
    assert language.sort(0).answer(torch.tensor([[5, 3, 3, 39, 0]])).tolist() == [[0, 3, 3, 5, 39]]


def test_facts_are_400_different_triples_with_answers_of_their_own() -> None:
    facts, again, other = language.facts(1, 0), language.facts(1, 0), language.facts(2, 0)
    assert facts.prompts is not None and again.prompts is not None and other.prompts is not None
    assert len({tuple(prompt) for prompt in facts.prompts.tolist()}) == 400
    assert torch.equal(facts.answer(facts.prompts), again.answer(again.prompts))
    assert not torch.equal(facts.prompts, other.prompts)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(facts.answer(facts.prompts[order]), facts.answer(facts.prompts)[order])


def test_a_sample_holds_all_skills_in_equal_numbers() -> None:
    skills = [language.copy(0), language.sort(1), language.facts(0, 2)]
    input_ids, labels = language.sample(skills, 8, torch.Generator().manual_seed(0))
    assert input_ids.shape == labels.shape == (8, 12)
    assert torch.bincount(input_ids[:, 0]).tolist() == [0, 0, 3, 3, 2]
    assert (labels[input_ids == language.PADDING] == -100).all()


def test_exact_match_of_a_half_trained_model_is_what_generation_writes() -> None:
    model, skill = language.decoder(0, layers=1, width=32, intermediate=64), language.copy(0)
    generator = torch.Generator().manual_seed(5)
    prompts = skill.draw(64, generator)
    language.pretrain(model, [skill], steps=35, learning_rate=1e-2, rows=64, seed=0)
    input_ids, labels = language.encode(skill, prompts)
    start = 1 + skill.reads
    written = model.generate(
        input_ids[:, :start], attention_mask=torch.ones(64, start, dtype=torch.long), max_new_tokens=5, do_sample=False
    )
    same = (written[:, start:] == labels[:, start:]).all(-1).double().mean().item()
    assert 0.0 < same < 1.0
    assert language.exact_match(model, skill, prompts) == same
