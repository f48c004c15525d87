"""Soft prompts: the invariants of card 22, to the digit where it gives digits."""

from __future__ import annotations

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn

from multitune.adaptation import AdaptationConfig
from multitune.adaptation.budget import within_budget
from multitune.models.tuners import register_tuners
from multitune.models.tuners.soft_prompt import SoftPrompt
from multitune.models.tuners.soft_prompt_config import DeptConfig, EptConfig, MptConfig
from multitune.models.tuners.task_ids import TaskIds, set_task_ids, set_tasks
from tests.models.test_tuners import IDS, count, llama, t5

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
SMALL = {"num_virtual_tokens": 3, "r": 2, "max_length": 6, "n_spaces": 2, "space_rank": 1}
PLAIN = {"num_virtual_tokens": 3, "r": 0, "n_spaces": 0, "fusion": False}
TASKS = ["one", "two", "three"]


def prompted(config_class=EptConfig, build=llama, shaken=True, **options):
    """A model with a prompt whose every part acts."""
    torch.manual_seed(3)
    defaults = SMALL if config_class is EptConfig else {"num_virtual_tokens": 3}
    task_type = "SEQ_2_SEQ_LM" if build is t5 else "CAUSAL_LM"
    model = get_peft_model(build(), config_class(task_type=task_type, **(defaults | options))).eval()
    if shaken:
        shake(model)
    return model


@torch.no_grad()
def shake(model) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn_like(parameter)


def host_of(model) -> SoftPrompt:
    return model.base_model.model.soft_prompt


@torch.no_grad()
def logits_of(model, ids=IDS, **inputs) -> torch.Tensor:
    return model(input_ids=ids, **inputs).logits


def alone(width: int, config) -> SoftPrompt:
    """A prompt without a model."""
    host = SoftPrompt(TaskIds(), lambda: nn.Embedding(4, width))
    host.update_layer("default", config, torch.zeros(config.num_virtual_tokens, width), trains=True)
    return host.eval()


def read_by(model, ids, **inputs) -> torch.Tensor:
    """What the layers of a Llama read in place of the ids."""
    seen = []
    handle = model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits_of(model, ids, **inputs)
    handle.remove()
    return seen[0]


# -- 1, 2: less of EPT is DePT, and less of that is prompt tuning ------------------------------------------------------


def test_without_fusion_and_spaces_ept_is_dept():
    ept = prompted(fusion=False, n_spaces=0)
    dept = prompted(DeptConfig, r=2, max_length=6)
    torch.testing.assert_close(logits_of(ept), logits_of(dept), atol=0, rtol=0)
    assert not torch.allclose(logits_of(ept), logits_of(prompted(n_spaces=0)), atol=1e-5)


@pytest.mark.parametrize("build", [llama, t5])
def test_without_a_decomposition_too_it_is_pefts_prompt_tuning(build):
    ours = prompted(build=build, **PLAIN)
    seq2seq = build is t5
    config = PromptTuningConfig(
        num_virtual_tokens=3,
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        **({"num_transformer_submodules": 1} if seq2seq else {}),
    )
    theirs = get_peft_model(build(), config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(host_of(ours).vectors["default"])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
        labels = IDS.masked_fill(mask == 0, -100)
        found = ours(input_ids=IDS, attention_mask=mask, labels=labels)
        expected = theirs(input_ids=IDS, attention_mask=mask, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits[:, -4:])
    torch.testing.assert_close(found.loss, expected.loss)


def test_at_the_start_ept_is_prompt_tuning_exactly():
    ept = prompted(shaken=False)
    plain = prompted(shaken=False, **PLAIN)
    host = host_of(ept)
    with torch.no_grad():
        host_of(plain).vectors["default"].copy_(host.vectors["default"])
    prompt, offsets = host.folded("default")
    assert torch.equal(prompt, host.vectors["default"])
    assert not offsets.any()
    torch.testing.assert_close(logits_of(ept), logits_of(plain), atol=0, rtol=0)


# -- 3: folding --------------------------------------------------------------------------------------------------------


def test_what_is_folded_answers_as_what_is_not():
    model = prompted()
    unfolded = model(input_ids=IDS).logits.detach()
    torch.testing.assert_close(logits_of(model), unfolded, atol=1e-6, rtol=0)


def test_inference_folds_once_and_a_training_step_unfolds():
    model, host = prompted(), None
    host = host_of(model)
    with torch.no_grad():
        first = host.folded("default")
        assert host.folded("default") is first
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        second = host.folded("default")
        assert not torch.equal(second[0], first[0])
        assert host.folded("default") is second
        host.vectors["default"].add_(1.0)  # as loading does, without train() or eval()
        assert not torch.equal(host.folded("default")[0], second[0])


# -- 4: numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (DeptConfig(num_virtual_tokens=40, r=45), 76_800),
        (DeptConfig(num_virtual_tokens=60, r=30), 76_800),
        (DeptConfig(num_virtual_tokens=80, r=15), 76_800),
        (DeptConfig(num_virtual_tokens=100, r=0), 76_800),
        (EptConfig(), 76_800),
        (EptConfig(num_virtual_tokens=60, r=30, n_spaces=0), 76_800),
        (EptConfig(num_virtual_tokens=40, r=45, n_spaces=4, space_rank=2), 76_800 + 4 * 2 * 768 * 2 + 768 * 4),
        (MptConfig(num_virtual_tokens=100, tasks=TASKS), 76_800 + 3 * (100 + 768)),
    ],
)
def test_the_formula_counts_what_trains(config, numbers):
    assert config.numbers(768) == numbers
    assert count(alone(768, config)) == numbers


@pytest.mark.parametrize(
    ("method", "config_class", "found"),
    [
        ("dept", DeptConfig, {"num_virtual_tokens": 60, "r": 30}),
        ("ept", EptConfig, {"num_virtual_tokens": 40, "r": 30}),
    ],
)
def test_a_budget_of_a_hundred_vectors_becomes_the_defaults(method, config_class, found):
    asked = AdaptationConfig(method=method, budget=76_800)
    sized = within_budget(asked, 220_000_000, lambda config: config_class(**config.options).numbers(768))
    assert sized.options == found


# -- 5: positions ------------------------------------------------------------------------------------------------------


def test_a_row_of_the_offsets_changes_the_token_at_its_position_alone():
    model = prompted(fusion=False)
    host = host_of(model)
    before = read_by(model, IDS)
    with torch.no_grad():
        host.offset_A["default"][2] += 1.0  # row 2 of A B alone
    changed = (read_by(model, IDS) != before).any(-1)
    assert changed[:, 3 + 2].all()
    assert changed.sum() == 2
    with torch.no_grad():
        host.offset_A["default"][4:] += 1.0  # rows that four tokens do not use
    assert torch.equal((read_by(model, IDS) != before).any(-1), changed)


def test_a_change_of_b_reaches_position_i_by_row_i_of_a():
    model = prompted(fusion=False)
    host = host_of(model)
    before = read_by(model, IDS)
    change = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        host.offset_B["default"] += change
    scale = 8 / 2**0.5
    torch.testing.assert_close(
        read_by(model, IDS)[0, 3:] - before[0, 3:], scale * host.offset_A["default"][:4].detach() @ change
    )


def test_tokens_beyond_the_last_position_stay_as_they_are():
    model = prompted(max_length=2)
    embedded = model.get_input_embeddings()(IDS)
    assert torch.equal(read_by(model, IDS)[:, 3 + 2 :], embedded[:, 2:])
    assert not torch.isclose(read_by(model, IDS)[:, 3:5], embedded[:, :2]).all(-1).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [2, 6])
def test_padding_changes_neither_offsets_nor_answers(side, limit):
    model = prompted(max_length=limit)
    expected = logits_of(model)
    pad, seen = torch.zeros_like(IDS), torch.ones_like(IDS)
    order = (pad, IDS) if side == "left" else (IDS, pad)
    mask = torch.cat([(pad, seen)[part is IDS] for part in order], dim=1)
    found = logits_of(model, torch.cat(order, dim=1), attention_mask=mask)
    torch.testing.assert_close(found[:, 4:] if side == "left" else found[:, :4], expected, atol=1e-5, rtol=1e-5)
    left = torch.tensor([[0, 5, 6, 7], [9, 10, 11, 12]])
    mixed = logits_of(model, left, attention_mask=(left != 0).long())
    torch.testing.assert_close(mixed[1], expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[0, 1:], logits_of(model, left[:1, 1:])[0], atol=1e-5, rtol=1e-5)


# -- 6: what stays -----------------------------------------------------------------------------------------------------


def test_a_step_leaves_the_base_as_it_was():
    base = {name: tensor.clone() for name, tensor in llama().named_parameters()}
    model = prompted()
    embedded = model.get_input_embeddings()(IDS).clone()
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    own = {name for name, p in model.get_base_model().named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in own} == {
        "vectors", "offset_A", "offset_B", "space_D", "space_U", "space_gate",
    }  # fmt: skip
    for name, parameter in model.get_base_model().named_parameters():
        assert (parameter.grad is not None) == (name in own), name
        assert name in own or torch.equal(parameter, base[name])
    assert torch.equal(model.get_input_embeddings()(IDS), embedded)


# -- 7, 8: gates and fusion --------------------------------------------------------------------------------------------


def test_the_gates_sum_to_one_and_do_not_matter_where_the_spaces_are_alike():
    host = alone(4, EptConfig(num_virtual_tokens=2, r=1, max_length=3, n_spaces=3, space_rank=2))
    shake(host)
    assert float(host.gates("default").detach().sum()) == pytest.approx(1)
    with torch.no_grad():
        host.space_D["default"].copy_(host.space_D["default"][:, :1].expand(-1, 3, -1))
        host.space_U["default"].copy_(host.space_U["default"][:1].expand(3, -1, -1))
        before = host.projected("default")
        host.space_gate["default"].mul_(-5).add_(torch.tensor([1.0, 2.0, 3.0]))
        assert before.abs().max() > 0
        torch.testing.assert_close(host.projected("default"), before)


def test_the_spaces_are_their_equation():
    host = alone(4, EptConfig(num_virtual_tokens=2, r=1, max_length=3, n_spaces=2, space_rank=1))
    shake(host)
    p, d, u = (getattr(host, kind)["default"].detach() for kind in ("vectors", "space_D", "space_U"))
    gate = torch.softmax(p.mean(0) @ host.space_gate["default"].detach(), 0)
    expected = sum(gate[k] * torch.relu(p @ d[:, k]) @ u[k] for k in range(2))
    torch.testing.assert_close(host.projected("default").detach(), expected)


def test_fusion_over_offsets_of_zero_is_zero():
    host = alone(4, EptConfig(num_virtual_tokens=2, r=1, max_length=3))
    with torch.no_grad():
        host.vectors["default"].fill_(7.0)
    assert torch.equal(host.fused("default", torch.zeros(3, 4)), torch.zeros(2, 4))


def test_the_worked_case_of_fusion():
    host = alone(2, EptConfig(num_virtual_tokens=1, r=1, max_length=2))
    with torch.no_grad():
        host.vectors["default"].copy_(torch.tensor([[1.0, 0.0]]))
    found = host.fused("default", torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found.detach(), torch.tensor([[0.6698, 0.3302]]), atol=5e-5, rtol=0)


# -- prompts of tasks --------------------------------------------------------------------------------------------------


def test_every_row_reads_the_prompt_of_its_task():
    model = prompted(MptConfig, tasks=TASKS, task_rank=2)
    host = host_of(model)
    shared, u, v = (getattr(host, kind)["default"].detach() for kind in ("vectors", "task_U", "task_V"))
    set_tasks(model, ["three", "unheard"])
    embeds = read_by(model, IDS)
    torch.testing.assert_close(embeds[0, :3], shared * (u[2] @ v[2]))
    torch.testing.assert_close(embeds[1, :3], shared * (u @ v).mean(0))
    set_task_ids(model, None)
    torch.testing.assert_close(read_by(model, IDS)[0, :3], shared * (u @ v).mean(0))
    set_task_ids(model, torch.tensor([[1, 1, 1, -1], [2, 2, 2, 2]]))  # of tokens, with padding
    torch.testing.assert_close(read_by(model, IDS)[0, :3], shared * (u[1] @ v[1]))


def test_all_tasks_start_with_the_shared_prompt():
    model = prompted(MptConfig, shaken=False, tasks=TASKS, task_rank=2)
    factors = host_of(model).task_factors("default", torch.tensor([0, 1, 2, -1]))
    assert torch.equal(factors, torch.ones(4, 3, 16))


def test_beams_follow_the_task_of_their_row():
    model = prompted(MptConfig, tasks=TASKS)
    with torch.no_grad():
        host_of(model).vectors["default"].mul_(20)
    told = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    set_task_ids(model, torch.tensor([0, 2]))
    both = model.generate(input_ids=IDS, **told)
    for row, task in enumerate((0, 2)):
        set_task_ids(model, torch.tensor([task]))
        assert torch.equal(model.generate(input_ids=IDS[row : row + 1], **told)[0], both[row])


def test_a_task_beyond_those_of_the_adapter_is_refused_and_an_unknown_name_is_told(caplog):
    model = prompted(MptConfig, tasks=TASKS)
    set_task_ids(model, torch.tensor([3, 0]))
    with pytest.raises(IndexError, match="the task id 3 is beyond the 3 tasks of the adapter"):
        logits_of(model)
    with caplog.at_level("WARNING", logger="multitune.models"):
        set_tasks(model, ["three", "two"])
        assert not caplog.messages
        set_tasks(model, ["three", "unheard"])
    assert caplog.messages == ["The adapter was not trained on 'unheard', which the average of its tasks answers."]
