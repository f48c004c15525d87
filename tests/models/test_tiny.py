from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.models.tiny import tiny_path
from multitune.models.tiny.batches import TEXT_WEIGHT, build_batch, encode_document, last_answer
from multitune.models.tiny.evaluate import question, score_documents, score_skills
from multitune.models.tiny.pretrain import (
    PROCESSES,
    STAGES,
    State,
    load_checkpoint,
    new_model,
    new_optimizers,
    save_checkpoint,
    schedule,
    stage_at,
)
from multitune.models.tiny.tokenizer import train_tokenizer
from multitune.tasks.synthetic import END, SKILLS, few_shot_document


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32).eval()


def test_the_shipped_weights_are_small_bfloat16_and_described() -> None:
    path = tiny_path() / "model.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((tiny_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    card = (tiny_path() / "README.md").read_text()
    assert "license: apache-2.0" in card and "multitune.models.tiny.pretrain" in card
    assert all(f"| {name} |" in card for name in SKILLS)


def test_it_has_at_most_eight_million_parameters(model: LlamaForCausalLM) -> None:
    assert model.num_parameters() <= 8_000_000


def test_no_code_comes_with_the_weights() -> None:
    assert not {path.suffix for path in tiny_path().iterdir()} & {".py", ".bin", ".pt", ".pkl"}


@pytest.mark.parametrize("text", ["", "cat 12", "Zürich, 日本\t x\n\n  y", "<|user|>a<|assistant|>b<|endoftext|>"])
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token_and_nothing_is_added(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer("12345").input_ids) == 5
    assert tokenizer(" 1").input_ids != tokenizer("1").input_ids
    assert tokenizer.bos_token_id not in tokenizer("cat").input_ids


def test_the_chat_template_marks_what_the_assistant_says(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [
        {"role": "system", "content": "Sort the words."},
        {"role": "user", "content": "dog cat"},
        {"role": "assistant", "content": "cat dog"},
        {"role": "user", "content": "pig hen"},
        {"role": "assistant", "content": "hen pig"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == (
        "<|system|>Sort the words.<|user|>dog cat<|assistant|>cat dog<|endoftext|>"
        "<|user|>pig hen<|assistant|>hen pig<|endoftext|>"
    )
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mine in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(said) == "cat dog<|endoftext|>hen pig<|endoftext|>"
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True).endswith("<|assistant|>")


def test_a_tokenizer_trained_twice_is_the_same() -> None:
    first = train_tokenizer(seed=3, vocabulary=400, documents=50)
    second = train_tokenizer(seed=3, vocabulary=400, documents=50)
    assert first.get_vocab() == second.get_vocab()
    assert first("Sort 12 hens").input_ids == second("Sort 12 hens").input_ids


def test_packed_documents_do_not_see_one_another(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    batch = build_batch(tokenizer, Random(0), rows=2, row_length=128, max_shots=4, episodes=0.3)
    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.mask, use_cache=False
        ).logits
        starts = [*(batch.position_ids[0] == 0).nonzero().flatten().tolist(), 128]
        for start, stop in pairwise(starts):
            if stop - start < 2:
                continue  # padding
            alone = model(input_ids=batch.input_ids[:1, start:stop], use_cache=False).logits
            torch.testing.assert_close(packed[:1, start:stop], alone, atol=1e-4, rtol=1e-4)


def test_loss_falls_on_answers_and_never_across_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = build_batch(tokenizer, Random(1), rows=3, row_length=128, max_shots=4, episodes=0.3)
    assert batch.weights.unique().tolist() == pytest.approx([0.0, TEXT_WEIGHT, 1.0])
    following = batch.position_ids[:, 1:] == 0
    assert (batch.weights[:, :-1][following] == 0).all()
    inside = batch.weights[:, :-1] > 0
    assert (batch.targets[:, :-1][inside] == batch.input_ids[:, 1:][inside]).all()
    assert (batch.input_ids != tokenizer.pad_token_id).float().mean() > 0.85


def test_a_batch_depends_on_its_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (build_batch(tokenizer, Random(5), 2, 128, 4, 0.3) for _ in range(2))
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.weights, second.weights)


def test_an_answer_is_tokenised_apart_from_its_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = [("Input: a\nOutput:", False), (f" cat{END}", True)]
    ids, answers = encode_document(tokenizer, pieces)
    assert tokenizer.decode([i for i, is_answer in zip(ids, answers, strict=True) if is_answer]) == f" cat{END}"
    assert last_answer(tokenizer, pieces) == (ids, sum(answers))


def test_exact_match_is_what_greedy_decoding_writes(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = Random(0)
    for name in ("copy_words", "sentiment", "add", "sort_words"):
        pieces = question(name, rng, 2)
        ids, answer = last_answer(tokenizer, pieces)
        prompt = torch.tensor([ids[:-answer]])
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=answer, do_sample=False
        )[0, prompt.shape[1] :]
        score = score_documents(model, tokenizer, [pieces])
        ended = written.tolist()[-1] in tokenizer("\n<|endoftext|>").input_ids
        assert bool(score.exact) == (written.tolist()[:-1] == ids[-answer:-1] and ended)
        assert (score.documents, score.tokens) == (1, answer)


def test_scores_do_not_depend_on_the_batch_size(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [question("look_up", Random(i), i % 3) for i in range(12)]
    one, many = (score_documents(model, tokenizer, documents, batch_size) for batch_size in (1, 5))
    assert (one.exact, one.tokens) == (many.exact, many.tokens)
    assert one.loss_sum == pytest.approx(many.loss_sum, rel=1e-4)


def test_the_shipped_weights_can_do_what_they_were_trained_for(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    scores = score_skills(model, tokenizer, ["copy_words", "sentiment", "parity", "pick_item"], 0, 25, seed=2)
    assert {name: score.accuracy > 0.6 for name, score in scores.items()} == dict.fromkeys(scores, True)


def test_the_schedule_rises_stays_and_falls() -> None:
    assert schedule(0.0) == 0.02
    assert schedule(0.2) == schedule(0.4) == 1.0
    assert schedule(0.7) == pytest.approx(0.5)
    assert schedule(1.0) == 0.02
    assert stage_at(0.0) is STAGES[0] and stage_at(1.5) is STAGES[-1]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_restored_run_goes_on_with_the_same_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([tokenizer("cat dog cat dog").input_ids])
    folder = tmp_path / "checkpoints"

    def step(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    model = new_model(tokenizer, seed=0)
    optimizers = new_optimizers(model, rank=0)
    step(model, optimizers)
    save_checkpoint(folder, 0, model, optimizers, State(seed=0, steps=4, step=1, seconds=2.5, tokens=4))
    step(model, optimizers)
    other = new_model(tokenizer, seed=9)
    other_optimizers = new_optimizers(other, rank=0)
    state = load_checkpoint(folder, 0, other, other_optimizers)
    assert state == State(seed=0, steps=4, step=1, seconds=2.5, tokens=4)
    step(other, other_optimizers)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    save_checkpoint(folder, 0, other, other_optimizers, State(seed=0, steps=4, step=2))
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "step-2"]


def test_every_weight_is_updated_by_one_process(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, seed=0)
    updated: list[int] = []
    for rank in range(PROCESSES):
        adam, muon = new_optimizers(model, rank)
        shared = [id(p) for group in adam.param_groups for p in group["params"]]
        updated += [id(p) for group in muon.param_groups for p in group["params"]]
    assert sorted(shared + updated) == sorted(id(p) for p in model.parameters())


def test_documents_fit_the_last_stage(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [
        len(encode_document(tokenizer, few_shot_document(Random(i), SKILLS["add_with_steps"], 8))[0]) for i in range(5)
    ]
    assert max(lengths) <= STAGES[-1].row_length
