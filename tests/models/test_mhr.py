"""Multi-head routing: the invariants of card 14, to the digit where it gives digits."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from multitune.models.tuners import register_tuners
from multitune.models.tuners.mhr import MhrConfig, MhrLayer
from multitune.models.tuners.mhr_tasks import anneal, export_lora, lora_of, new_tasks, routed_layers
from multitune.models.tuners.task_ids import UNKNOWN, TaskIds, set_task_ids, set_tasks
from tests.models.test_tuners import IDS, bert, count, gpt2, llama, output_of, shake, t5

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
TASKS = ["one", "two", "three"]


def config(**changes) -> MhrConfig:
    settings = {"r": 2, "n_skills": 4, "n_splits": 4, "tasks": TASKS, "task_type": "CAUSAL_LM"}
    return MhrConfig(**(settings | changes))


def routed(build=llama, **changes):
    torch.manual_seed(3)
    model = get_peft_model(build(), config(**changes)).eval()
    shake(model)
    return model


def layer_of(inputs: int, outputs: int, logits=None, **changes) -> MhrLayer:
    """A lone layer over a zero matrix, so that it returns what the adapter adds."""
    base = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(base.weight)
    base.requires_grad_(False)
    settings = config(**changes)
    layer = MhrLayer(base, (inputs, outputs), TaskIds())
    logits = torch.zeros(settings.n_tasks, settings.n_splits, settings.n_skills) if logits is None else logits
    layer.update_layer("default", settings, nn.Parameter(logits))
    layer.set_adapter("default")
    return layer.eval()


def shaken(layer: MhrLayer) -> MhrLayer:
    shake(layer)
    return layer


def logits_for(model, ids, tokens=IDS) -> torch.Tensor:
    set_task_ids(model, ids)
    with torch.no_grad():
        return model(input_ids=tokens).logits


# -- 1, 3, 4: the mixture ----------------------------------------------------------------------------------------------


def test_one_skill_is_plain_lora_with_scaling_one_over_r_whatever_the_logits():
    model = routed(n_skills=1, n_splits=2)
    plain = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    state = {}
    for path, layer in routed_layers(model):
        a, b = layer.mhr_A["default"][:, 0], layer.mhr_B["default"][:, 0]
        state[f"{path}.lora_A.default.weight"] = a.flatten(0, 1).T
        state[f"{path}.lora_B.default.weight"] = b.permute(1, 0, 2).flatten(1).T
    plain.load_state_dict(state, strict=False)
    torch.testing.assert_close(logits_for(model, torch.tensor([0, 2])), output_of(plain), atol=1e-6, rtol=1e-5)


def test_one_head_is_poly():
    layer = shaken(layer_of(8, 6, n_splits=1, n_skills=3, r=2))
    alpha_TS = torch.sigmoid(layer.mhr_Z["default"][:, 0])
    alpha_TS = alpha_TS / alpha_TS.sum(-1, keepdim=True)
    hidden = torch.randn(3, 5, 8)
    layer.task_ids.current = torch.arange(3)
    for task in range(3):
        a = sum(alpha_TS[task, s] * layer.mhr_A["default"][0, s] for s in range(3))
        b = sum(alpha_TS[task, s] * layer.mhr_B["default"][0, s] for s in range(3))
        torch.testing.assert_close(layer(hidden)[task], hidden[task] @ a @ b / 2, atol=1e-6, rtol=1e-5)


def test_zero_logits_mix_alike_and_the_log_of_three_gives_three_fifths():
    layer = layer_of(8, 8, n_splits=4, n_skills=4)
    assert torch.equal(layer.mixture("default", torch.tensor([1])), torch.full((1, 4, 4), 0.25))
    layer = layer_of(4, 4, torch.tensor([[[math.log(3.0), 0.0]]]), n_splits=1, n_skills=2, tasks=["one"])
    torch.testing.assert_close(layer.mixture("default", torch.tensor([0])), torch.tensor([[[0.6, 0.4]]]))


def test_factors_are_averaged_and_not_their_products():
    layer = layer_of(2, 2, n_splits=1, n_skills=2, r=1, tasks=["one"])
    layer.mhr_A["default"].data = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])
    layer.mhr_B["default"].data = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    torch.testing.assert_close(layer(torch.eye(2)), torch.full((2, 2), 0.25))


def test_the_change_of_a_weight_is_not_block_diagonal():
    layer = shaken(layer_of(4, 4, n_splits=4, n_skills=2, r=1, tasks=["one"]))
    assert bool((layer(torch.eye(4)) != 0).all())


@pytest.mark.parametrize(("router", "first"), [("private", [1.0, 0.0, 0.0]), ("average", [1 / 3] * 3)])
def test_the_controls_route_as_they_are_called(router, first):
    layer = layer_of(8, 8, n_splits=2, n_skills=3, router=router)
    torch.testing.assert_close(layer.mixture("default", torch.tensor([0])), torch.tensor(first).expand(1, 2, 3))
    torch.testing.assert_close(layer.mixture("default", torch.tensor([UNKNOWN])), torch.full((1, 2, 3), 1 / 3))


def test_stochastic_gates_are_samples_in_training_alone():
    layer = layer_of(8, 8, n_splits=2, n_skills=3, stochastic=True)
    quiet = layer.mixture("default", torch.tensor([0]))
    assert torch.equal(quiet, torch.full((1, 2, 3), 1 / 3))
    layer.train()
    torch.manual_seed(0)
    first, second = (layer.mixture("default", torch.tensor([0])) for _ in range(2))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sum(-1), torch.ones(1, 2))


# -- 2, 5: batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [llama, gpt2, bert, t5])
def test_a_fresh_adapter_is_the_base_and_disabling_a_trained_one_restores_it(build):
    base = output_of(build())
    model = get_peft_model(build(), config(task_type="FEATURE_EXTRACTION"))
    set_task_ids(model, torch.tensor([0, 1]))
    assert torch.equal(output_of(model.base_model.model), base)
    shake(model)
    assert not torch.allclose(output_of(model.base_model.model), base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(output_of(model.base_model.model), base)


def test_a_batch_of_several_tasks_is_what_each_gives_alone():
    model = routed()
    mixed = logits_for(model, torch.tensor([2, 0]))
    torch.testing.assert_close(mixed[:1], logits_for(model, torch.tensor([2]), IDS[:1]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed[1:], logits_for(model, torch.tensor([0]), IDS[1:]), atol=1e-6, rtol=1e-5)
    flipped = logits_for(model, torch.tensor([0, 2]), IDS.flip(0))
    torch.testing.assert_close(flipped, mixed.flip(0), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(mixed, logits_for(model, torch.tensor([1, 1])), atol=1e-3)


def test_ids_of_tokens_are_those_of_rows():
    model = routed()
    rows = logits_for(model, torch.tensor([2, 0]))
    tokens = logits_for(model, torch.tensor([2, 0])[:, None].expand(2, 4))
    torch.testing.assert_close(tokens, rows, atol=1e-6, rtol=1e-5)


def test_beams_follow_their_rows():
    model = routed()
    set_tasks(model, ["three", "one"])
    both = model.generate(input_ids=IDS, max_new_tokens=4, num_beams=3, do_sample=False)
    set_tasks(model, ["three"])
    alone = model.generate(input_ids=IDS[:1], max_new_tokens=4, num_beams=3, do_sample=False)
    assert torch.equal(both[:1, : alone.shape[1]], alone)


def test_encoder_and_decoder_of_other_lengths_take_the_rows_tasks():
    model = routed(t5, task_type="SEQ_2_SEQ_LM")
    labels = torch.tensor([[5, 6], [7, 8]])
    set_task_ids(model, torch.tensor([2, 0]))
    both = model(input_ids=IDS, labels=labels).logits
    set_task_ids(model, torch.tensor([2]))
    torch.testing.assert_close(model(input_ids=IDS[:1], labels=labels[:1]).logits, both[:1], atol=1e-6, rtol=1e-5)
    set_task_ids(model, torch.tensor([[2, 2], [0, 0]]))
    with pytest.raises(ValueError, match="the tasks of 2 tokens are known, and the input has 4"):
        model(input_ids=IDS, labels=labels)


def test_an_unknown_task_is_the_average_and_one_beyond_the_tasks_is_refused():
    model = routed()
    average = logits_for(model, None)
    torch.testing.assert_close(logits_for(model, torch.tensor([UNKNOWN, UNKNOWN])), average, atol=1e-6, rtol=1e-5)
    set_tasks(model, ["never heard of"])
    torch.testing.assert_close(output_of(model), average, atol=1e-6, rtol=1e-5)
    with pytest.raises(IndexError, match="beyond the 3 tasks"):
        logits_for(model, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="2 rows cannot belong"):
        logits_for(model, torch.tensor([0, 1, 2]))


def test_gradients_are_the_same_with_checkpointing():
    def gradients(checkpointing: bool):
        model = routed().train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        set_task_ids(model, torch.tensor([2, 0]))
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


# -- 6, 7: other tasks -------------------------------------------------------------------------------------------------


def test_routing_alone_trains_the_logits_and_leaves_the_modules():
    model = routed()
    new_tasks(model, ["new"], trains="routing")
    layers = [layer for _, layer in routed_layers(model)]
    assert count(model) == len(layers) * 4 * 4
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    set_tasks(model, ["new"])
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    for name, parameter in model.named_parameters():
        if "mhr_Z" in name:
            assert not torch.equal(parameter, before[name])
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def test_a_new_task_starts_as_the_average():
    model = routed()
    average = logits_for(model, None)
    new_tasks(model, ["new"])
    set_tasks(model, ["new"])
    assert 0 < (output_of(model) - average).abs().max() < 5e-3


def test_annealing_ends_at_the_average():
    model = routed()
    routed_logits, average = logits_for(model, torch.tensor([0, 1])), logits_for(model, None)
    anneal(model, 0.0)
    assert torch.equal(logits_for(model, torch.tensor([0, 1])), routed_logits)
    anneal(model, 0.5)
    halfway = next(routed_layers(model))[1]
    assert halfway.annealing == pytest.approx(math.sqrt(0.5))
    anneal(model, 1.0)
    torch.testing.assert_close(logits_for(model, torch.tensor([0, 1])), average, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("task", [None, "two"])
def test_one_task_and_the_average_are_plain_lora(task, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config()).eval()
    shake(model)
    set_tasks(model, [task or "nobody's"])
    expected = output_of(model)
    export_lora(model, tmp_path / "lora", task)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora").eval()
    torch.testing.assert_close(output_of(plain), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output_of(plain.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_only_known_tasks_are_exported():
    with pytest.raises(ValueError, match="it has one, two, three"):
        lora_of(routed(), "four")


# -- 8: counts, bytes, files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [1, 4])
def test_the_count_is_the_formula(splits):
    places = 2 * [(16, 16), (16, 8), (16, 8), (16, 16), (16, 32), (16, 32), (32, 16)]
    model = get_peft_model(llama(), config(n_splits=splits))
    assert count(model) == sum(4 * 2 * (i + o) + 3 * splits * 4 for i, o in places)


@pytest.mark.parametrize(
    ("granularity", "routers"),
    [("finegrained", 14), ("layerwise", 4), ("blockwise", 2), ("coderwise", 1), ("coarsegrained", 1)],
)
def test_layers_share_their_logits_by_granularity(granularity, routers, tmp_path):
    model = routed(granularity=granularity)
    assert len({id(layer.mhr_Z["default"]) for _, layer in routed_layers(model)}) == routers
    expected = logits_for(model, torch.tensor([0, 2]))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert len({id(layer.mhr_Z["default"]) for _, layer in routed_layers(loaded)}) == routers
    torch.testing.assert_close(logits_for(loaded, torch.tensor([0, 2])), expected, atol=1e-6, rtol=1e-5)


def test_the_coders_of_an_encoder_decoder_route_apart():
    model = routed(t5, granularity="coderwise", task_type="SEQ_2_SEQ_LM")
    assert len({id(layer.mhr_Z["default"]) for _, layer in routed_layers(model)}) == 2


def test_one_seed_gives_the_same_bytes():
    first, second = routed(), routed()
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_another_process_reads_what_was_saved(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config()).eval()
    shake(model)
    expected = logits_for(model, torch.tensor([0, 2]))
    model.save_pretrained(tmp_path / "adapter")
    program = (
        "import sys, torch; from multitune.models.tuners import register_tuners; register_tuners()\n"
        "from multitune.models.tuners.task_ids import set_tasks\n"
        "from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]).eval()\n"
        "set_tasks(model, ['one', 'three'])\n"
        "torch.save(model(input_ids=torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])).logits, sys.argv[3])"
    )
    words = [tmp_path / "base", tmp_path / "adapter", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_splits": 3}, "does not divide a width of 16"),
        ({"router": "random"}, "router is one of"),
        ({"granularity": "fine"}, "granularity is one of"),
        ({"router": "average", "trains": "routing"}, "no logits"),
        ({"target_modules": ["embed_tokens"]}, "no linear layer"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(llama(), config(**options))


def test_a_mixture_does_not_merge():
    with pytest.raises(NotImplementedError, match="one task as LoRA"):
        routed().merge_and_unload()
