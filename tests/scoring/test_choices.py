"""Log-probabilities of choices equal what reading prompt and choice as one text gives, for every family of models."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from multitune.decoding.prompt_pass import SHORTEST_PREFIX, shared_prefixes, shares_prefixes, shares_prompts
from multitune.errors import MultituneError
from multitune.models.loading import Backbone
from multitune.scoring.choices import choice_log_probabilities, whole_text_log_probabilities

FAMILIES = ["llama", "gpt2", "t5", "bart", "opt", "bloom", "mistral", "mamba"]


def examples(backbone: Backbone) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts of many lengths: some share one list of choices, others have their own, of one to five tokens."""
    generator = np.random.default_rng(0)

    def text(tokens: int) -> list[int]:
        return generator.integers(3, len(backbone.tokenizer), size=tokens).tolist()

    prompts = [text(n) for n in (1, 9, 30, 4, 4, 17, 2)]
    shared = [text(n) for n in (1, 1, 3, 5, 2)]
    own = [[text(2)], [text(1), text(1)], [text(n) for n in (5, 1, 4, 2, 2, 3, 1)]]
    return prompts, [shared] * 4 + own


def one_by_one(backbone: Backbone, prompt: list[int], choice: list[int]) -> float:
    """log p(choice | prompt) by the definition, with no batch, no padding and no cache."""
    with torch.no_grad():
        if backbone.form == "seq2seq":
            start = backbone.model.config.decoder_start_token_id
            decoder = torch.tensor([[start, *choice[:-1]]])
            logits = backbone.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
        else:
            logits = backbone.model(input_ids=torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(choice)), choice].sum().item()


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_reading_every_choice_after_its_prompt(backbone_of, family, batch_tokens):
    backbone = backbone_of(family)
    prompts, choices = examples(backbone)
    expected = [
        np.array([one_by_one(backbone, prompt, choice) for choice in some])
        for prompt, some in zip(prompts, choices, strict=True)
    ]
    assert_close(choice_log_probabilities(backbone, prompts, choices, batch_tokens=batch_tokens), expected)
    assert_close(whole_text_log_probabilities(backbone, prompts, choices, batch_tokens=batch_tokens), expected)


def test_models_without_a_cache_by_rows_read_whole_texts(backbone_of):
    assert {family: shares_prompts(backbone_of(family).model) for family in FAMILIES} == {
        family: family != "mamba" for family in FAMILIES
    }


def test_worked_probabilities(chain, ids):
    backbone = chain(
        {"a": {"b": 0.5, "c": 0.25, "x": 0.25}, "b": {"c": 0.5, "x": 0.5}, "c": {"</s>": 0.125, "x": 0.875}}
    )
    (found,) = choice_log_probabilities(backbone, [ids("xa")], [[ids("b"), ids("c"), ids("bc"), [*ids("bc"), 2]]])
    np.testing.assert_allclose(np.exp(found), [0.5, 0.25, 0.25, 0.03125], rtol=1e-5)


def tokens_read(backbone: Backbone) -> tuple[list[int], Any]:
    """A list that collects how many tokens every pass reads, padding included, and the handle to stop it."""
    read: list[int] = []
    layer = backbone.model.model.embed_tokens
    return read, layer.register_forward_hook(lambda _, tokens, __: read.append(tokens[0].numel()))


def test_a_prompt_is_read_once_and_choices_of_one_token_need_no_second_pass(backbone_of):
    backbone = backbone_of("llama")
    read, handle = tokens_read(backbone)
    prompts = [[5 + i] * 20 for i in range(3)]
    choice_log_probabilities(backbone, prompts, [[[7], [8], [9]]] * 3)
    assert read == [60]
    read.clear()
    choice_log_probabilities(backbone, prompts, [[[7], [8, 9], [9, 9, 9]]] * 3)
    assert read == [60, 12]  # two tokens of two choices (one of them padded) of three prompts
    handle.remove()


def test_what_all_prompts_begin_with_is_read_once(backbone_of):
    backbone = backbone_of("llama")
    read, handle = tokens_read(backbone)
    shared = list(range(3, 33))
    prompts = [[*shared, 40 + i, *([50] * i)] for i in range(4)]
    choice_log_probabilities(backbone, [*prompts, [9] * 20], [[[7], [8]]] * 5)
    assert read == [30, 16, 20]  # the prefix; four endings, padded to four tokens; a prompt that begins otherwise
    handle.remove()


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mistral", "t5", "mamba"])
def test_prompts_with_a_shared_beginning_score_as_whole_texts(backbone_of, family, batch_tokens):
    backbone = backbone_of(family)
    prompts, choices = examples(backbone)
    shared, other = (np.random.default_rng(seed).integers(3, 259, size=40).tolist() for seed in (5, 6))
    prompts = [shared + prompt for prompt in prompts[:5]] + [other + prompt for prompt in prompts[5:]]
    prompts += [shared, shared[:20]]  # one that is the beginning itself, and one that is a part of it
    choices = [*choices, choices[0], choices[0]]
    assert_close(
        choice_log_probabilities(backbone, prompts, choices, batch_tokens=batch_tokens),
        whole_text_log_probabilities(backbone, prompts, choices),
    )


def test_models_whose_attention_slides_or_reads_both_ways_read_whole_prompts(backbone_of):
    assert {family: shares_prefixes(backbone_of(family)) for family in FAMILIES} == {
        family: family in ("llama", "gpt2", "opt", "bloom") for family in FAMILIES
    }


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=12), st.integers(0, 20))
def test_every_prompt_is_in_one_group_whose_beginning_it_has(prompts, extra):
    prompts = [[7] * extra + prompt for prompt in prompts]
    groups = shared_prefixes(prompts)
    assert sorted(i for _, members in groups for i in members) == list(range(len(prompts)))
    for prefix, members in groups:
        assert not prefix or len(prefix) >= SHORTEST_PREFIX
        assert all(prompts[i][: len(prefix)] == prefix and len(prompts[i]) > len(prefix) for i in members)


def test_identical_choices_tie_and_the_only_choice_wins(backbone_of):
    found = choice_log_probabilities(backbone_of("llama"), [[5, 6], [5, 6]], [[[7, 8], [9], [7, 8]], [[7, 8]]])
    assert found[0][0] == pytest.approx(found[0][2], abs=1e-6)
    assert found[1] == pytest.approx(found[0][:1], abs=1e-5)


def test_many_choices_are_as_good_as_few(backbone_of):
    backbone = backbone_of("llama")
    generator = np.random.default_rng(1)
    choices = [generator.integers(3, 259, size=n).tolist() for n in generator.integers(1, 5, size=150)]
    prompts = [generator.integers(3, 259, size=n).tolist() for n in (12, 5, 8)]
    found = choice_log_probabilities(backbone, prompts, [choices] * 3, batch_tokens=256)
    assert [len(one) for one in found] == [150] * 3
    assert math.isclose(found[1][77], one_by_one(backbone, prompts[1], choices[77]), abs_tol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_prompt_longer_than_the_positions_is_cut_on_the_left(backbone_of, family, caplog):
    backbone = backbone_of(family)  # 128 positions
    long = np.random.default_rng(2).integers(3, 259, size=200).tolist()
    choices = [[[7], [8, 9, 10]]]
    with caplog.at_level(logging.WARNING, logger="multitune.decoding"):
        found = choice_log_probabilities(backbone, [long], choices)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 1 prompts are longer than the model's positions: cut on the left."
    ]
    fits = long[-128:] if family == "bart" else long[-126:]  # of the last choice token nothing is read
    assert_close(found, choice_log_probabilities(backbone, [fits], choices))


def test_an_empty_prompt_is_the_beginning_of_sequence(backbone_of):
    backbone = backbone_of("llama")
    choices = [[[7], [8, 9]]]
    assert_close(choice_log_probabilities(backbone, [[]], choices), choice_log_probabilities(backbone, [[1]], choices))


def test_nothing_to_score(backbone_of):
    assert choice_log_probabilities(backbone_of("llama"), [], []) == []
    assert choice_log_probabilities(backbone_of("mamba"), [], []) == []


@pytest.mark.parametrize("choices", [[[7], []], [], [[7] * 128]])
def test_choices_that_cannot_be_scored_are_refused(backbone_of, choices):
    with pytest.raises(MultituneError) as refused:
        choice_log_probabilities(backbone_of("llama"), [[5], [6]], [[[7]], choices])
    assert "prompt 1" in refused.value.where


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_adapter_scores_as_its_merged_model(backbone_of, family):
    base = backbone_of(family)
    prompts, choices = examples(base)
    targets = ["q_proj", "v_proj"] if family == "llama" else ["q", "v"]
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    adapted = Backbone(get_peft_model(copy.deepcopy(base.model), lora), base.tokenizer, base.form, base.config)
    assert shares_prompts(adapted.model)
    found = choice_log_probabilities(adapted, prompts, choices)
    assert np.abs(found[0] - choice_log_probabilities(base, prompts, choices)[0]).max() > 0.01
    merged = Backbone(adapted.model.merge_and_unload(), base.tokenizer, base.form, base.config)
    assert_close(found, choice_log_probabilities(merged, prompts, choices))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_learnt_prompts_are_read_with_every_choice(backbone_of, family, method):
    base = backbone_of(family)
    prompts, choices = examples(base)
    config = method(num_virtual_tokens=3, task_type="CAUSAL_LM" if family == "llama" else "SEQ_2_SEQ_LM")
    adapted = Backbone(get_peft_model(copy.deepcopy(base.model), config), base.tokenizer, base.form, base.config)
    found = choice_log_probabilities(adapted, prompts, choices)
    assert np.abs(found[0] - choice_log_probabilities(base, prompts, choices)[0]).max() > 1e-3
    assert_close(found, choice_log_probabilities(adapted, prompts, choices, batch_tokens=1))
