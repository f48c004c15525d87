"""Models with a soft prompt behave as peft's own tuners do, on decoders, encoder-decoders and encoders."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, StaticCache

from multitune.decoding.prompt_pass import shares_prompts
from multitune.models.config import ModelConfig
from multitune.models.hidden import head_logits, hidden_states
from multitune.models.loading import Backbone
from multitune.models.positions import usable_positions
from multitune.models.tuners.soft_prompt_config import DeptConfig, EptConfig, MptConfig
from multitune.scoring.choices import choice_log_probabilities, whole_text_log_probabilities
from tests.models.conftest import small_model, small_tokenizer
from tests.models.test_soft_prompt import SMALL, TASKS, host_of, logits_of, prompted, shake
from tests.models.test_tuners import IDS, bert, count, llama, output_of, t5

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def adapted(family: str, **options):
    """A model whose prompt matters to what it writes."""
    sequence_to_sequence = family in ("t5", "bart")
    torch.manual_seed(3)
    config = EptConfig(task_type="SEQ_2_SEQ_LM" if sequence_to_sequence else "CAUSAL_LM", **(SMALL | options))
    model = get_peft_model(small_model(family), config).eval()
    shake(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gemma2", "mpt", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_no_text_and_a_generated_token_has_its_place(family, beams):
    """Six positions have an offset; four tokens are read and five are written."""
    model = adapted(family)
    ids, mask = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    if family in ("t5", "bart"):
        ids, mask = ids.flip(1), mask.flip(1)
    told = {"input_ids": ids, "attention_mask": mask, "num_beams": beams, **GREEDY}
    if family == "bart":
        told["min_new_tokens"] = 5  # it would end at once
    cached = model.generate(**told)
    assert torch.equal(model.generate(**told, use_cache=False), cached)
    with_prompt = output_of(model)
    with model.disable_adapter():
        assert not torch.allclose(output_of(model), with_prompt, atol=1e-4)
    if beams == 1 and family not in ("t5", "bart"):  # as in training, where the whole text is read at once
        whole = cached[:1]
        likeliest = logits_of(model, whole).argmax(-1)[0, 3:-1]
        assert torch.equal(likeliest, whole[0, 4:])
        assert torch.equal(whole[0, :4], ids[0])


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_adapters_live_beside_one_another(task_type, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, EptConfig(task_type=task_type, **SMALL)).eval()
    shake(model)
    first = logits_of(model)
    model.save_pretrained(tmp_path / "first")
    stored = sum(file.stat().st_size for file in (tmp_path / "first").glob("*.safetensors"))
    header = int.from_bytes((tmp_path / "first/adapter_model.safetensors").read_bytes()[:8], "little") + 8
    assert stored - header == 4 * count(model) == 4 * EptConfig(**SMALL).numbers(16)

    model.load_adapter(str(tmp_path / "first"), "second")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.endswith(".default") for name in trained)
    model.set_adapter("second")
    torch.testing.assert_close(logits_of(model), first, atol=1e-6, rtol=0)
    shake(model)
    assert not torch.allclose(logits_of(model), first, atol=1e-4)
    model.set_adapter("default")
    torch.testing.assert_close(logits_of(model), first, atol=1e-6, rtol=0)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(llama()))
    with pytest.raises(NotImplementedError, match="cannot be added into the weights"):
        model.merge_and_unload()
    assert torch.equal(logits_of(copy.deepcopy(model)), first)
    plain = model.unload()
    assert torch.equal(logits_of(plain), logits_of(llama()))
    assert not hasattr(plain, "soft_prompt")
    if task_type is None:
        return

    program = (
        "import sys, torch; from multitune.models.tuners import register_tuners; register_tuners()\n"
        "from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        "base = lambda: AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])\n"
        "models = [PeftModel.from_pretrained(base(), sys.argv[2], low_cpu_mem_usage=low).eval() for low in (0, 1)]\n"
        "torch.save([model(input_ids=ids).logits for model in models], sys.argv[3])"
    )
    words = [tmp_path / "base", tmp_path / "first", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, capture_output=True)
    for logits in torch.load(tmp_path / "logits.pt"):
        torch.testing.assert_close(logits, first, atol=1e-6, rtol=0)


def test_an_encoder_decoder_saves_and_loads(tmp_path):
    from peft import PeftModel

    t5().save_pretrained(tmp_path / "base")
    model = prompted(build=lambda: AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base"))
    expected = output_of(model)
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(output_of(loaded), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("build", [llama, t5])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointing(build, reentrant):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = prompted(build=build).train()
        model.config.dropout_rate = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)
        assert gradient.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_training_and_scoring_find_the_prompt(family):
    model = adapted(family)
    form = "seq2seq" if family == "t5" else "causal"
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    batch |= {"position_ids": torch.arange(4).expand(2, -1), "example_ids": torch.arange(2)[:, None].expand(-1, 4)}
    with torch.no_grad():
        split = head_logits(model, hidden_states(model, batch))
        expected = model(input_ids=IDS, **({"labels": IDS} if form == "seq2seq" else {})).logits
    torch.testing.assert_close(split, expected, atol=1e-4, rtol=1e-4)

    tokenizer = small_tokenizer(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    backbone = Backbone(model, tokenizer, form, ModelConfig(name="small"))
    prompts, choices = [[5, 6, 7], [8]], [[[9, 10, 11], [12]], [[4, 5], [6, 7, 8, 9]]]
    assert shares_prompts(model)
    shared = choice_log_probabilities(backbone, prompts, choices)
    whole = whole_text_log_probabilities(backbone, prompts, choices)
    for one, other in zip(shared, whole, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=1e-4)
    assert usable_positions(model) == (None if family == "t5" else 64 - 3)


def test_logits_may_be_asked_for_at_a_few_positions():
    model = prompted()
    every = logits_of(model)
    torch.testing.assert_close(logits_of(model, logits_to_keep=2), every[:, -2:])
    torch.testing.assert_close(logits_of(model, logits_to_keep=torch.tensor([1, 3])), every[:, [1, 3]])
    with torch.no_grad():
        loss, logits = model(input_ids=IDS, labels=IDS, return_dict=False)[:2]
        inner = model.get_base_model()(IDS, return_dict=False)[0]
    torch.testing.assert_close(logits, every)
    torch.testing.assert_close(inner, every)
    assert loss.ndim == 0


def test_embeddings_may_be_given_in_place_of_tokens():
    model = prompted()
    with torch.no_grad():
        found = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
    assert torch.equal(found, logits_of(model))


def test_an_encoder_reads_its_prompt_and_returns_its_own_tokens():
    torch.manual_seed(3)
    model = get_peft_model(bert(), EptConfig(task_type="FEATURE_EXTRACTION", **SMALL)).eval()
    shake(model)
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    with torch.no_grad():
        states = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), token_type_ids=types).last_hidden_state
        assert states.shape == (2, 4, 16)
        assert not torch.allclose(states, model(input_ids=IDS).last_hidden_state)
        with model.disable_adapter():
            assert not torch.allclose(states, model(input_ids=IDS, token_type_ids=types).last_hidden_state, atol=1e-3)


def test_parameters_are_float32_on_a_base_in_bfloat16():
    model = get_peft_model(llama().bfloat16(), EptConfig(task_type="CAUSAL_LM", **SMALL), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    shake(model)
    output = model(input_ids=IDS, labels=IDS)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert host_of(model).offset_A["default"].grad.dtype == torch.float32


def test_an_instruction_is_repeated_or_cut_to_the_prompt(tmp_path):
    llama().save_pretrained(tmp_path)
    small_tokenizer(pad_token="<pad>").save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    for text, tokens in (("w5 w6", [5, 6, 5]), ("w5 w6 w7 w8", [5, 6, 7])):
        config = DeptConfig(num_virtual_tokens=3, init="text", init_text=text, task_type="CAUSAL_LM")
        model = get_peft_model(copy.deepcopy(base), config)
        assert torch.equal(host_of(model).vectors["default"], base.get_input_embeddings().weight[tokens])


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (DeptConfig, {"num_virtual_tokens": 0}, "num_virtual_tokens is at least 1, not 0"),
        (DeptConfig, {"r": -1}, "r is at least 0, not -1"),
        (DeptConfig, {"max_length": 0}, "max_length is at least 1, not 0"),
        (EptConfig, {"n_spaces": -1}, "n_spaces is at least 0, not -1"),
        (EptConfig, {"space_rank": 0}, "space_rank is at least 1, not 0"),
        (MptConfig, {"task_rank": 0}, "task_rank is at least 1, not 0"),
        (EptConfig, {"init": "noise"}, "init is one of vocabulary, text, not noise"),
        (EptConfig, {"init": "text"}, "init: text needs init_text"),
        (EptConfig, {"task_type": "SEQ_CLS"}, "SEQ_CLS is no task type"),
    ],
)
def test_options_that_mean_nothing_are_refused(config_class, options, message):
    with pytest.raises(ValueError, match=message):
        config_class(**options)


def test_what_no_prompt_can_stand_before_is_refused(tmp_path):
    with pytest.raises(ValueError, match="recurrent"):
        adapted("mamba")
    config = EptConfig(
        init="text", init_text="w5", tokenizer_name_or_path=str(tmp_path), task_type="CAUSAL_LM", **SMALL
    )
    with pytest.raises(ValueError, match="no tokenizer for init_text was found"):
        get_peft_model(llama(), config)
    model = prompted()
    with pytest.raises(ValueError, match="needs a mask of tokens"):
        logits_of(model, attention_mask=torch.ones(2, 1, 4, 4))
    cache = StaticCache(config=model.config, max_cache_len=16)
    with pytest.raises(ValueError, match="needs a mask of tokens"):
        model.generate(input_ids=IDS, past_key_values=cache, **GREEDY)
    several = prompted(MptConfig, tasks=TASKS)
    assert not hasattr(host_of(several), "base_layer")
