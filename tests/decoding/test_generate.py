"""What a model writes is known where the model is a Markov chain, and never depends on its company in a batch."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from multitune.decoding.generate import cut_at_stop, generate
from multitune.errors import MultituneError
from multitune.models.loading import Backbone

ALPHABET = {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}, "d": {"</s>": 1.0}}
CIRCLE = {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}, "d": {"a": 1.0}}


def prompts_of(backbone: Backbone, lengths: tuple[int, ...]) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, len(backbone.tokenizer), size=n).tolist() for n in lengths]


def steps(backbone: Backbone):
    """A list that grows by one whenever the model reads something."""
    calls: list[int] = []
    handle = backbone.model.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def test_a_text_ends_at_the_end_of_text_token(chain, ids):
    assert generate(chain(ALPHABET), [ids("a"), ids("xxb"), ids("d")], max_new_tokens=10) == ["bcd", "cd", ""]


def test_a_text_ends_after_max_new_tokens(chain, ids):
    assert generate(chain(CIRCLE), [ids("a")], max_new_tokens=6) == ["bcdabc"]


def test_a_text_ends_before_the_first_stop_string_and_the_model_stops_there(chain, ids):
    backbone = chain(CIRCLE)
    calls, handle = steps(backbone)
    assert generate(backbone, [ids("a"), ids("c")], max_new_tokens=40, stop=["da"]) == ["bc", ""]
    handle.remove()
    assert len(calls) == 4  # "b", "c", "d", "a"


def test_a_stop_string_in_the_prompt_or_across_its_end_stops_nothing(chain, ids):
    assert generate(chain(CIRCLE), [ids("cdab")], max_new_tokens=4, stop=["da", "bc"]) == ["c"]
    assert generate(chain(CIRCLE), [ids("d")], max_new_tokens=3, stop=["da"]) == ["abc"]


def test_the_earliest_of_several_stop_strings_cuts():
    assert cut_at_stop("one two three", ["three", "two"]) == "one "
    assert cut_at_stop("one", ["x"]) == "one"
    assert cut_at_stop("xx", ["x"]) == ""


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_a_greedy_text_does_not_depend_on_its_batch(random_backbone, family):
    backbone = random_backbone(family)
    prompts = prompts_of(backbone, (1, 30, 7, 7, 12, 2, 25))
    alone = generate(backbone, prompts, max_new_tokens=12, batch_tokens=1)
    assert generate(backbone, prompts, max_new_tokens=12, batch_tokens=100) == alone
    assert generate(backbone, prompts, max_new_tokens=12, batch_tokens=10_000) == alone
    assert generate(backbone, prompts[::-1], max_new_tokens=12) == alone[::-1]
    assert len(set(alone)) > 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_prompts_begin_with_is_read_once_and_changes_no_text(random_backbone, family):
    backbone = random_backbone(family)
    shared = torch.randint(3, 259, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [[*shared, *range(10, 10 + n)] for n in (1, 5, 3, 3)] + [[9] * 6]
    read: list[int] = []
    layer = backbone.model.get_input_embeddings()
    handle = layer.register_forward_hook(lambda _, tokens, __: read.append(tokens[0].shape[1]))
    together = generate(backbone, prompts, max_new_tokens=8, batch_tokens=200)
    handle.remove()
    assert [tokens for tokens in read if tokens > 1] == [30, 5, 6]
    assert together == [generate(backbone, [prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_what_a_hub_model_says_of_generation_does_not_change_greedy(random_backbone):
    backbone = random_backbone("llama")
    prompts = prompts_of(backbone, (3, 9))
    plain = generate(backbone, prompts, max_new_tokens=8)
    backbone.model.generation_config.update(
        num_beams=3, repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, temperature=9.0, min_length=30
    )
    assert generate(backbone, prompts, max_new_tokens=8) == plain


def test_sampling_follows_the_probabilities_and_the_seed(chain, ids):
    backbone = chain({"a": {"b": 0.75, "c": 0.25}})
    prompts = [ids("a")] * 400
    state = torch.get_rng_state()
    texts = generate(backbone, prompts, max_new_tokens=1, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert texts == generate(backbone, prompts, max_new_tokens=1, temperature=1.0, seed=3)
    assert texts != generate(backbone, prompts, max_new_tokens=1, temperature=1.0, seed=4)
    assert abs(texts.count("b") / 400 - 0.75) < 0.07
    # At temperature 1/2 the odds 3:1 become 9:1; the most probable 70 % are "b" alone.
    cold = generate(backbone, prompts, max_new_tokens=1, temperature=0.5, seed=3)
    assert abs(cold.count("b") / 400 - 0.9) < 0.05
    assert set(generate(backbone, prompts, max_new_tokens=1, temperature=1.0, top_p=0.7, seed=3)) == {"b"}


def test_a_prompt_that_is_too_long_is_cut_on_the_left_and_said_once(random_backbone, caplog):
    backbone = random_backbone("gpt2")  # 64 positions
    long, short = prompts_of(backbone, (90, 5))
    with caplog.at_level(logging.WARNING, logger="multitune.decoding"):
        texts = generate(backbone, [long, short, long], max_new_tokens=10)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 prompts are longer than the model's positions: cut on the left."
    ]
    assert texts == generate(backbone, [long[-54:], short, long[-54:]], max_new_tokens=10)


def test_no_prompts_and_an_empty_prompt(random_backbone):
    backbone = random_backbone("llama")
    assert generate(backbone, [], max_new_tokens=5) == []
    assert generate(backbone, [[]], max_new_tokens=5) == generate(backbone, [[1]], max_new_tokens=5)


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 64}, {"stop": ["\n", ""]}])
def test_what_cannot_be_done_is_refused(random_backbone, arguments):
    with pytest.raises(MultituneError):
        generate(random_backbone("llama"), [[3]], **arguments)


def test_progress_counts_prompts_and_the_mode_stays(random_backbone):
    backbone = random_backbone("llama")
    backbone.model.train()
    seen: list[tuple[int, int]] = []
    generate(backbone, [[5], [6], [7, 8]], max_new_tokens=2, batch_tokens=6, progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (3, 3)]
    assert backbone.model.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_generates_what_its_merged_model_generates(random_backbone):
    backbone = random_backbone("llama")
    prompts = prompts_of(backbone, (3, 11, 6))
    base = generate(backbone, prompts, max_new_tokens=10)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = Backbone(get_peft_model(backbone.model, lora), backbone.tokenizer, "causal", backbone.config)
    texts = generate(adapted, prompts, max_new_tokens=10)
    assert texts != base
    merged = Backbone(adapted.model.merge_and_unload(), backbone.tokenizer, "causal", backbone.config)
    assert generate(merged, prompts, max_new_tokens=10) == texts


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_learnt_prompt_keeps_texts_independent_of_their_batch(random_backbone):
    backbone = random_backbone("llama")
    tuned = get_peft_model(
        copy.deepcopy(backbone.model), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    adapted = Backbone(tuned, backbone.tokenizer, "causal", backbone.config)
    prompts = prompts_of(backbone, (3, 11, 6, 6, 80))
    texts = generate(adapted, prompts, max_new_tokens=10)
    assert texts == generate(adapted, prompts, max_new_tokens=10, batch_tokens=1)
    assert texts != generate(backbone, prompts, max_new_tokens=10)
