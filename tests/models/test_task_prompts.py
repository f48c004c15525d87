"""Prompts of tasks before the inputs of a model that trains: exact, per row, and off where no task has one."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from multitune.decoding.generate import generate
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.hidden import head_logits, hidden_states
from multitune.models.packed import packing_route
from multitune.models.positions import usable_positions
from multitune.models.pretrained import Backbone
from multitune.models.task_prompts import (
    attach_prompts,
    detach_prompts,
    fresh_prompts,
    read_prompt,
    save_prompts,
    saved_prompts,
    without_prompts,
)
from multitune.models.tuners.task_ids import read_prompt_of, set_prompt_ids
from multitune.training.losses import LossModule
from tests.small_llama import small_llama

LENGTH, WIDTH = 3, 16

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft's own use


@pytest.fixture
def model():
    return small_llama(40).eval()


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(LENGTH, WIDTH, generator=generator) for name in ("rte", "boolq")}


def tokens(rows=4, length=7, seed=0):
    return torch.randint(2, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(side="right"):
    """Two rows of 7 and 4 tokens and their mask."""
    ids, mask = tokens(2), torch.ones(2, 7, dtype=torch.long)
    place = slice(4, None) if side == "right" else slice(0, 3)
    ids[1, place], mask[1, place] = 0, 0
    return ids, mask


def batch(ids, mask, tasks):
    """What training gives: labels on all tokens but the first two."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.arange(ids.shape[1]).expand_as(ids) * mask,
        "example_ids": torch.where(mask == 1, rows, -1),
        "task_ids": torch.where(mask == 1, torch.tensor(tasks)[:, None], -1),
    }


def losses_of(model, names, given):
    module = LossModule(Backbone(model, None, "causal", ModelConfig(name="small")), names)
    return module(given)


def test_with_no_step_of_training_both_modes_are_those_of_stage_one(model, prompts, tmp_path):
    """Invariant 2: without its prompt the model is the base, with it the model of stage 1."""
    base = copy.deepcopy(model)
    first = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)).eval()
    first.save_pretrained(tmp_path / "stage-1")
    learned = read_prompt(tmp_path / "stage-1")
    assert learned.equal(first.prompt_encoder["default"].embedding.weight)

    ids, mask = padded()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        attach_prompts(model, {"rte": learned})
        read_prompt_of(model, "rte")
        prompted = model(input_ids=ids, attention_mask=mask).logits
        expected = first(input_ids=ids, attention_mask=mask).logits[:, LENGTH:]
        read_prompt_of(model, "trivia")
        off = model(input_ids=ids, attention_mask=mask).logits
    assert off.equal(plain)
    assert prompted[mask == 1].equal(expected[mask == 1])
    assert not prompted.allclose(plain, atol=1e-3)


def test_a_saved_prompt_is_an_adapter_of_peft(model, prompts, tmp_path):
    save_prompts(prompts, tmp_path, base="small", task_type="CAUSAL_LM")
    found = saved_prompts(tmp_path)
    assert list(found) == ["boolq", "rte"]
    assert all(found[name].equal(prompts[name]) for name in prompts)
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "prompts" / "rte").eval()
    attach_prompts(model, found)
    read_prompt_of(model, "rte")
    with torch.no_grad():
        assert model(tokens()).logits.equal(adapted(input_ids=tokens()).logits[:, LENGTH:])


def test_rows_of_two_tasks_equal_each_task_alone(model, prompts):
    """Invariant 8, first half: in one batch every row reads its own task's prompt."""
    attach_prompts(model, prompts)
    ids = tokens()
    with torch.no_grad():
        set_prompt_ids(model, torch.tensor([0, 1, 1, 0]))
        mixed = model(ids).logits
        for place, rows in ((0, [0, 3]), (1, [1, 2])):
            set_prompt_ids(model, torch.tensor([place]))
            assert mixed[rows].allclose(model(ids[rows]).logits, atol=1e-6)
    assert not mixed[0].allclose(mixed[0].roll(1), atol=1e-3)


def test_losses_of_two_tasks_equal_each_task_alone(model, prompts):
    attach_prompts(model, prompts)
    ids, mask = padded()
    together = losses_of(model, ["boolq", "rte"], batch(ids, mask, [0, 1]))
    long = losses_of(model, ["boolq"], batch(ids[:1], mask[:1], [0]))
    short = losses_of(model, ["rte"], batch(ids[1:, :4], mask[1:, :4], [0]))
    assert together.allclose(torch.cat([long, short]), atol=1e-6)


def test_the_loss_is_of_target_tokens_alone_and_padding_changes_nothing(model, prompts):
    """Invariant 4: labels of the prompt are -100, the mask is s longer, more padding leaves the loss as it is."""
    attach_prompts(model, prompts)
    ids, mask = padded()
    given = batch(ids, mask, [0, 0])
    seen = {}
    handle = model.model.register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True)
    loss = losses_of(model, ["rte"], given)
    handle.remove()
    assert len(loss) == int((given["labels"] != -100).sum()) == 5 + 2
    assert seen["attention_mask"].shape == (2, LENGTH + 7)
    assert seen["attention_mask"].sum(1).tolist() == [LENGTH + 7, LENGTH + 4]
    assert seen["inputs_embeds"].shape == (2, LENGTH + 7, WIDTH)
    wider = batch(torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(mask, (0, 5)), [0, 0])
    assert losses_of(model, ["rte"], wider).allclose(loss, atol=1e-6)

    read_prompt_of(model, "rte")
    own = model(input_ids=ids, attention_mask=mask, labels=given["labels"]).loss
    assert own.allclose(loss.mean(), atol=1e-6), "transformers' own loss of the same labels"


def test_the_prompt_is_frozen_and_the_model_is_not(model, prompts):
    """Invariants 1 and 5, for a step of stage 2: gradients of the prompt are None, and the counts those of the base."""
    numbers = sum(one.numel() for one in model.parameters())
    attach_prompts(model, prompts)
    ids, mask = padded()
    losses_of(model, ["rte", "boolq"], batch(ids, mask, [0, 1])).mean().backward()
    host = model.task_prompts
    assert [one.grad for one in host.vectors] == [None, None]
    assert all(one.grad is not None for name, one in model.named_parameters() if "task_prompts" not in name)
    assert sum(one.numel() for one in model.parameters() if one.requires_grad) == numbers


def test_the_joint_control_trains_both(model, prompts):
    attach_prompts(model, prompts, trains=True)
    ids, mask = padded()
    losses_of(model, ["rte", "boolq"], batch(ids, mask, [0, 1])).mean().backward()
    assert all(one.grad.any() for one in model.task_prompts.vectors)
    assert model.lm_head.weight.grad.any()


def test_generation_with_a_cache_and_beams_reads_the_prompt(model, prompts):
    attach_prompts(model, prompts)
    read_prompt_of(model, "rte")
    ids, mask = padded("left")
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **settings)
    alone = model.generate(input_ids=ids[1:, 3:], **settings)
    assert together[1, 3:].equal(alone[0])
    without_cache = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert together.equal(without_cache)
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, **settings)
    assert beams[1, 3:].equal(model.generate(input_ids=ids[1:, 3:], num_beams=3, **settings)[0])


class Numbers:
    """A tokenizer of which generation needs the pad token and the texts."""

    pad_token_id, bos_token_id, eos_token_id = 0, None, 1

    def batch_decode(self, rows, **settings):
        return [" ".join(map(str, row.tolist())) for row in rows]


def test_what_prompts_begin_with_is_not_read_without_the_soft_prompt(model, prompts):
    """Texts of 20 common tokens, which a plain model reads once for all, and each alone."""
    attach_prompts(model, {"rte": 10 * prompts["rte"]})
    backbone = Backbone(model, Numbers(), "causal", ModelConfig(name="small"))
    common, tails = tokens(1, 20)[0].tolist(), tokens(3, 4, seed=7).tolist()
    read_prompt_of(model, "rte")
    together = generate(backbone, [common + tail for tail in tails], max_new_tokens=6)
    assert together == [generate(backbone, [common + tail], max_new_tokens=6)[0] for tail in tails]


def test_an_encoder_decoder_reads_it_in_its_encoder(prompts):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=WIDTH,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    model = T5ForConditionalGeneration(config).eval()
    ids, labels = tokens(2), tokens(2, 3, seed=5)
    with torch.no_grad():
        plain = model(input_ids=ids, labels=labels).logits
        front = torch.stack([prompts["rte"], prompts["boolq"]])
        embedded = torch.cat([front, model.get_input_embeddings()(ids)], dim=1)
        expected = model(inputs_embeds=embedded, labels=labels).logits
        attach_prompts(model, prompts)
        assert model(input_ids=ids, labels=labels).logits.equal(plain)
        set_prompt_ids(model, torch.tensor([0, 1]))
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).logits.allclose(
            expected, atol=1e-6
        )


def test_losses_of_an_encoder_decoder_are_each_tasks_own(prompts):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": WIDTH, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).eval()
    attach_prompts(model, prompts)
    ids, labels = tokens(2), tokens(2, 3, seed=5)
    module = LossModule(Backbone(model, None, "seq2seq", ModelConfig(name="small")), ["boolq", "rte"])

    def losses(rows, tasks):
        ids_T = torch.tensor(tasks)[:, None].expand(-1, 3)
        given = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows]), "labels": labels[rows]}
        return module({**given, "task_ids": ids_T, "example_ids": ids_T})

    alone = torch.cat([losses([0], [0]), losses([1], [1])])
    assert losses([0, 1], [0, 1]).allclose(alone, atol=1e-6)
    assert not losses([0, 1], [1, 0]).allclose(alone, atol=1e-4)


def test_a_model_behind_lora_reads_it_too(model, prompts):
    from peft import LoraConfig

    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"])).eval()
    for one in (model, adapted):
        attach_prompts(one, prompts)
        read_prompt_of(one, "boolq")
    with torch.no_grad():
        assert adapted(input_ids=tokens()).logits.allclose(model(input_ids=tokens()).logits, atol=1e-6)


def test_a_prompt_of_no_vectors_is_no_prompt(model):
    ids, mask = padded()
    given = batch(ids, mask, [0, 0])
    plain = losses_of(model, ["rte"], given)
    attach_prompts(model, fresh_prompts(model, ["rte"], 0, "vocabulary", seed=0))
    assert losses_of(model, ["rte"], given).allclose(plain, atol=1e-6)


def test_hidden_states_found_before_a_prompt_came_are_found_anew(model, prompts):
    ids, mask = padded()
    given = batch(ids, mask, [0, 0])
    before = losses_of(model, ["rte"], given)
    attach_prompts(model, prompts)
    assert not losses_of(model, ["rte"], given).allclose(before, atol=1e-4)
    read_prompt_of(model, "rte")
    states = hidden_states(model, given)
    expected = model(input_ids=ids, attention_mask=mask).logits
    assert head_logits(model, states)[mask == 1].allclose(expected[mask == 1], atol=1e-5)


def test_fresh_prompts_are_seeded_and_look_like_embeddings(model):
    weight = model.get_input_embeddings().weight.detach()
    drawn = fresh_prompts(model, ["rte", "boolq"], 50, "vocabulary", seed=4)
    assert all((row == weight).all(1).any() for row in drawn["rte"])
    assert not drawn["rte"].equal(drawn["boolq"])
    assert drawn["boolq"].equal(fresh_prompts(model, ["rte", "boolq"], 50, "vocabulary", seed=4)["boolq"])
    noise = fresh_prompts(model, ["rte"], 400, "uniform", seed=4)["rte"]
    assert float(noise.std() / weight.std()) == pytest.approx(1, abs=0.05)
    assert float(noise.abs().max() / weight.std()) <= 3**0.5


def test_rows_are_not_packed_and_positions_are_fewer(model, prompts):
    free = usable_positions(model)
    assert packing_route(model) == "positions"
    attach_prompts(model, prompts)
    assert packing_route(model) == "unpacked"
    assert usable_positions(model) == free - LENGTH
    assert detach_prompts(model)["boolq"].equal(prompts["boolq"])
    assert packing_route(model) == "positions"
    assert detach_prompts(model) == {}


def test_off_and_always(model, prompts):
    attach_prompts(model, {"rte": prompts["rte"]})
    for task, which, acts in (
        ("rte", "off", False),
        ("cb", "own", False),
        ("cb", "always", True),
        ("rte", "own", True),
    ):
        read_prompt_of(model, task, which)
        assert (model.task_prompts.acting is not None) == acts, (task, which)
    attach_prompts(model, prompts)
    with pytest.raises(MultituneError, match="keeps those of rte, boolq"):
        read_prompt_of(model, "cb", "always")


def test_a_model_can_be_had_without_for_a_while(model, prompts):
    attach_prompts(model, prompts)
    read_prompt_of(model, "rte")
    with torch.no_grad():
        expected = model(tokens()).logits
        with without_prompts(model) as kept:
            assert list(kept) == ["rte", "boolq"]
            assert not any("task_prompts" in name for name in model.state_dict())
        assert model(tokens()).logits.equal(expected)


def test_what_cannot_be_is_told(model, prompts, tmp_path):
    with pytest.raises(MultituneError, match=r"vectors of 8 numbers.* in 16: it was trained on another base"):
        attach_prompts(model, {"rte": torch.zeros(3, 8)})
    attach_prompts(model, {"rte": torch.zeros(2, 16), "cb": torch.zeros(3, 16)})
    set_prompt_ids(model, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="rows without one"):
        model(tokens(2))
    set_prompt_ids(model, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"prompts of \[2, 3\] vectors"):
        model(tokens(2))
    with pytest.raises(MultituneError, match="The prompt cannot be read"):
        read_prompt(tmp_path)
    from peft import LoraConfig

    lora = get_peft_model(small_llama(40), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(MultituneError, match="type lora is more than a prompt"):
        read_prompt(tmp_path / "lora")
    save_prompts(prompts, tmp_path, base="small", task_type="CAUSAL_LM")
    file = tmp_path / "prompts" / "rte" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(MultituneError, match="The prompt cannot be read"):
        saved_prompts(tmp_path)
