"""The examination that every method passes on a small Llama, end to end through peft's own files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from multitune.adaptation import METHODS, AdaptationConfig, adapt
from multitune.adaptation.budget import sized
from multitune.adaptation.methods import NOT_CONTINUED, NOT_OFFERED, WITHOUT_ADAPTER
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.hidden import head_logits, hidden_states
from multitune.models.loading import Backbone, add_adapter, save_backbone
from multitune.models.packed import check_packing, packing_route
from tests.small_llama import small_llama

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    ),  # peft 0.21 asks for it
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's advice
]

VOCABULARY = 61
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
}
FITTED: dict[str, dict[str, object]] = {
    # peft's default sizes need a wider model than 32
    "adaption_prompt": {"adapter_layers": 2},
    "c3a": {"block_size": 16},
    "cpt": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]},
    "fourierft": {"n_frequency": 50},
    "mhr": {"n_splits": 4},
    "miss": {"r": 8},
    "psoft": {"r": 8},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [4, 5]},
    "vblora": {"vector_length": 16},
    "waveft": {"n_frequency": 50},
}
TUNERS = sorted(set(METHODS) - set(WITHOUT_ADAPTER) - set(NOT_OFFERED))


STORES_MORE = {
    "lora_fa",  # A
    "pvera", "randlora", "tinylora", "vera",  # random projections, or singular vectors
    "adamss", "frod", "shira", "supertuning",  # bases, and which entries train
}  # fmt: skip
"""Methods whose file holds more than what trains, as it could not be read without."""


class Tokens:
    """Stands for the tokenizer, which no adapter touches."""

    def save_pretrained(self, folder: Path) -> None:
        """Write nothing."""


@pytest.fixture
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a Llama; with biases for the method that trains them."""
    method = request.node.callspec.params.get("method") if hasattr(request.node, "callspec") else None
    small_llama(VOCABULARY, **SIZES, attention_bias=method == "bitfit").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, method: str, **options: object) -> Backbone:
    model = AutoModelForCausalLM.from_pretrained(base)
    backbone = Backbone(model, Tokens(), "causal", ModelConfig(name=str(base)))
    return adapt(backbone, AdaptationConfig(method=method, **options), steps=10)


def continued(base: Path, folder: Path, **options: object) -> Backbone:
    model = add_adapter(AutoModelForCausalLM.from_pretrained(base), folder, trainable=True)
    backbone = Backbone(model, Tokens(), "causal", ModelConfig(name=str(base)))
    return adapt(backbone, AdaptationConfig(method="continue", **options))


def batch_of(rows: int = 2, tokens: int = 9) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": input_ids,
        "position_ids": torch.arange(tokens).expand(rows, -1),
        "example_ids": torch.arange(rows)[:, None].expand(-1, tokens),
    }


def train_a_little(backbone: Backbone, steps: int = 5) -> None:
    """Steps long enough that adapters which start at zero act, and that what multiplies them moves too."""
    batch = batch_of()
    trainable = [p for p in backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    backbone.model.train()
    for _ in range(steps):
        logits = head_logits(backbone.model, hidden_states(backbone.model, batch)[:, :-1].flatten(0, 1))
        torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    backbone.model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    input_ids = batch_of()["input_ids"]
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits[:, -9:]


@pytest.mark.parametrize("method", TUNERS)
def test_a_method_trains_its_own_parameters_only_and_survives_the_disk(method: str, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    untouched = logits_of(AutoModelForCausalLM.from_pretrained(base))
    backbone = adapted(base, method, **FITTED.get(method, {}))
    backbone.model.eval()
    at_first = (logits_of(backbone.model) - untouched).abs().max()
    assert METHODS[method].identity == bool(at_first <= 1e-6), f"differs by {at_first}"
    frozen = {name: p.detach().clone() for name, p in backbone.model.named_parameters() if not p.requires_grad}
    train_a_little(backbone)

    trained = logits_of(backbone.model)
    assert not torch.equal(trained, untouched), "training changed nothing"
    for name, parameter in backbone.model.named_parameters():
        if name in frozen:
            assert parameter.grad is None
            assert torch.equal(parameter, frozen[name]), name

    with backbone.model.disable_adapter():
        assert torch.equal(logits_of(backbone.model), untouched)
    split = head_logits(backbone.model, hidden_states(backbone.model, batch_of()))
    torch.testing.assert_close(split, trained, atol=1e-5, rtol=1e-5)
    if packing_route(backbone.model) != "unpacked":
        check_packing(backbone)

    if method == "delta_lora":
        with pytest.raises(MultituneError, match="moves the weights themselves"):
            save_backbone(backbone, tmp_path / "adapter", merged=False)
        return
    save_backbone(backbone, tmp_path / "adapter", merged=False)
    if method not in STORES_MORE:
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        assert file.stat().st_size - header <= 1.1 * 4 * trainable(backbone)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(loaded), trained, atol=1e-5, rtol=1e-5)

    begun = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    if method not in NOT_CONTINUED:  # trained further, it starts where it ended, and what trained trains
        again = continued(base, tmp_path / "adapter")
        assert {name for name, p in again.model.named_parameters() if p.requires_grad} == begun
        torch.testing.assert_close(logits_of(again.model.eval()), trained, atol=1e-5, rtol=1e-5)
        train_a_little(again)
        assert not torch.equal(logits_of(again.model), trained)

    if not METHODS[method].merges:
        with pytest.raises(MultituneError, match="cannot be added into the weights"):
            save_backbone(backbone, tmp_path / "merged", merged=True)
        assert not (tmp_path / "merged").exists()
    else:
        save_backbone(backbone, tmp_path / "merged", merged=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits_of(merged), trained, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits_of(backbone.model), trained, atol=0, rtol=0)
        merges_and_comes_back(backbone.model, trained)


@pytest.mark.parametrize(
    ("options", "keeps_base"),
    [
        ({"use_rslora": True}, True),
        ({"use_dora": True}, True),
        ({"use_qalora": True, "qalora_group_size": 8}, True),
        ({"init_lora_weights": "gaussian"}, True),
        ({"init_lora_weights": "orthogonal"}, True),
        ({"init_lora_weights": "pissa"}, False),
        ({"init_lora_weights": "olora"}, False),
    ],
)
def test_variants_of_lora_start_as_the_base_and_load_as_they_were(options, keeps_base, base: Path, tmp_path: Path):
    from peft import PeftModel

    untouched = logits_of(AutoModelForCausalLM.from_pretrained(base))
    backbone = adapted(base, "lora", r=4, **options)
    torch.testing.assert_close(logits_of(backbone.model.eval()), untouched, atol=1e-6, rtol=0)
    train_a_little(backbone)
    trained = logits_of(backbone.model)
    assert not torch.allclose(trained, untouched, atol=1e-2)
    with backbone.model.disable_adapter():  # what is taken out of the weights is missing without the adapter
        assert torch.equal(logits_of(backbone.model), untouched) == keeps_base
    save_backbone(backbone, tmp_path / "adapter", merged=False)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(loaded), trained, atol=1e-5, rtol=1e-5)
    save_backbone(backbone, tmp_path / "merged", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits_of(merged), trained, atol=1e-5, rtol=1e-5)


def merges_and_comes_back(model: torch.nn.Module, trained: torch.Tensor) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), trained, atol=1e-5, rtol=1e-5)
    try:
        model.unmerge_adapter()
    except NotImplementedError:
        assert model.peft_config["default"].peft_type == "OSF"
        return
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", TUNERS)
def test_a_second_adapter_leaves_the_first_alone(method: str, base: Path, tmp_path: Path) -> None:
    from peft.utils import get_peft_model_state_dict

    backbone = adapted(base, method, **FITTED.get(method, {}))
    train_a_little(backbone)
    model = backbone.model
    first = logits_of(model)
    stored = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    model.save_pretrained(tmp_path / "first")

    model.load_adapter(str(tmp_path / "first"), "second")
    model.set_adapter("second")
    torch.testing.assert_close(logits_of(model.eval()), first, atol=1e-6, rtol=0)
    model.train()  # discards what was computed once from the values below
    generator = torch.Generator().manual_seed(1)
    mark = "adaption_" if method == "adaption_prompt" else "second"  # it exchanges whole modules, which bear no name
    for name, parameter in model.named_parameters():
        if mark in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    assert not torch.allclose(logits_of(model.eval()), first, atol=1e-3)

    model.set_adapter("default")
    assert torch.equal(logits_of(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    kept = get_peft_model_state_dict(model)
    assert kept.keys() == stored.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in stored.items())


def test_another_process_reads_what_every_method_saved(tmp_path: Path) -> None:
    """One process for all, as most of its time is spent on imports."""
    wanted = {}
    for method in sorted(set(TUNERS) - {"delta_lora"}):  # is saved merged alone
        base = tmp_path / ("biased" if method == "bitfit" else "base")
        if not base.exists():
            small_llama(VOCABULARY, **SIZES, attention_bias=method == "bitfit").save_pretrained(base)
        backbone = adapted(base, method, **FITTED.get(method, {}))
        train_a_little(backbone)
        save_backbone(backbone, tmp_path / method, merged=False)
        wanted[method] = logits_of(backbone.model)
    (tmp_path / "methods.json").write_text(json.dumps(list(wanted)))
    program = """
import json, sys, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from multitune.models.tuners import register_tuners
register_tuners()
folder = Path(sys.argv[1])
ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
found = {}
for method in json.loads((folder / "methods.json").read_text()):
    base = AutoModelForCausalLM.from_pretrained(folder / ("biased" if method == "bitfit" else "base"))
    model = PeftModel.from_pretrained(base, folder / method).eval()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    found[method] = logits[:, -9:].clone()
save_file(found, folder / "found.safetensors")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    found = load_file(tmp_path / "found.safetensors")
    for method, logits in wanted.items():
        torch.testing.assert_close(found[method], logits, atol=1e-5, rtol=1e-5, msg=method)


@pytest.mark.parametrize("method", [method for method in TUNERS if METHODS[method].size])
def test_a_budget_makes_the_largest_adapter_that_it_allows(method: str, base: Path) -> None:
    size, least = METHODS[method].size, METHODS[method].smallest
    options = {name: value for name, value in FITTED.get(method, {}).items() if name != size}
    smallest = trainable(adapted(base, method, **sized(AdaptationConfig(method=method, **options), least).options))
    backbone = adapted(base, method, budget=3 * smallest, **options)
    found = getattr(backbone.model.peft_config["default"], size)
    assert trainable(backbone) <= 3 * smallest
    larger = sized(AdaptationConfig(method=method, **options), found + METHODS[method].multiple)
    assert trainable(adapted(base, method, **larger.options)) > 3 * smallest


def trainable(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.model.parameters() if parameter.requires_grad)
