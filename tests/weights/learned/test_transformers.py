"""Learned coefficients on transformers models: a decoder with tied weights, an encoder with a head, LoRA by peft."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from multitune.errors import MultituneError
from multitune.models.pretrained import peft_warnings_logged
from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import SETTINGS, LearningConfig
from multitune.weights.learned.folders import as_merge, mapped_tensors, vector_of_folder
from multitune.weights.learned.learning import LearningTask, initial_gradient, learn_coefficients
from multitune.weights.learned.routes import routed
from multitune.weights.learned.tasks import Labelled, labelled_task
from multitune.weights.learned.vectors import FactoredVector, difference
from multitune.weights.merging import merge
from tests.small_llama import small_llama

TOKENS = torch.arange(2, 26).view(4, 6)


def disturbed(model, seed, scale=0.05):
    """A copy as if fine-tuned."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return tuned


def language_task():
    """The next token of fixed rows: the whole batch in every step."""
    return LearningTask(
        "rows", lambda epoch, forward: [TOKENS] * 3, lambda forward, ids: forward(input_ids=ids, labels=ids).loss
    )


@pytest.fixture
def llama():
    return small_llama(30, tie_word_embeddings=True).eval()


def test_a_decoder_learns_alike_by_all_routes_and_its_tied_weights_count_once(llama):
    tuned = [disturbed(llama, seed) for seed in (1, 2)]
    vectors = [difference(llama.state_dict(), one.state_dict()) for one in tuned]
    composition = composed(llama, vectors)
    assert "lm_head.weight" in vectors[0].shapes
    assert "lm_head.weight" not in composition.base
    assert composition.parameters == 2 * len(dict(llama.named_parameters()))
    lam_NC = composition.start()
    lam_NC[1] = 1
    with routed("streamed", llama, composition) as route, torch.no_grad():
        assert route.at(lam_NC)(TOKENS).logits == pytest.approx(tuned[1](TOKENS).logits, abs=1e-5)
    found = {}
    for name in ("streamed", "autograd"):
        config = LearningConfig(learning_rate=0.05, epochs=3, route=name)
        found[name] = learn_coefficients(llama, composition, [language_task()], config)
    assert found["streamed"].losses == pytest.approx(found["autograd"].losses, abs=1e-5)
    assert found["streamed"].lam_NC == pytest.approx(found["autograd"].lam_NC, abs=1e-3)
    assert found["streamed"].losses[-1] < found["streamed"].losses[0]


# torch 2.13 compiles its own forward derivatives by torch.jit.script, at their first use
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_decoder_is_linearised():
    llama = small_llama(30, attn_implementation="eager").eval()
    composition = composed(llama, [difference(llama.state_dict(), disturbed(llama, 1).state_dict())])
    with routed("linearised", llama, composition) as route, torch.no_grad():
        low, middle, high = (route.at(composition.start(value))(TOKENS, use_cache=False).logits for value in (0, 1, 2))
        assert low == pytest.approx(llama(TOKENS).logits, abs=1e-6)
    assert low - 2 * middle + high == pytest.approx(torch.zeros_like(low), abs=1e-4)
    config = LearningConfig(learning_rate=0.05, epochs=2, route="linearised")
    task = LearningTask(
        "rows",
        lambda epoch, forward: [TOKENS],
        lambda forward, ids: functional.cross_entropy(forward(ids, use_cache=False).logits[:, :-1].mT, ids[:, 1:]),
    )
    learned = learn_coefficients(llama, composition, [task], config)
    assert learned.losses[-1] < learned.losses[0]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("layer", {"outside", "model.layers.0", "model.layers.1"}),
        ("category", {"attention", "feed_forward", "norm", "embedding"}),
    ],
)
def test_blocks_by_layer_and_category(llama, by, labels):
    composition = composed(llama, [difference(llama.state_dict(), disturbed(llama, 1).state_dict())], by)
    assert set(composition.blocks.labels) == labels
    mixed = composed(llama, composition.vectors, "layer and category")
    assert {"model.layers.0 attention", "model.layers.1 norm", "outside norm"} <= set(mixed.blocks.labels)
    slope = {one.blocks.labels: initial_gradient(llama, one, [lambda f: language_task().loss(f, TOKENS)]) for one in
             (composition, mixed, composed(llama, composition.vectors, "all"))}  # fmt: skip
    sums = [float(gradient.sum()) for gradient in slope.values()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)


def test_an_encoder_adapts_from_few_shots_with_its_head_frozen():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    bert = BertForSequenceClassification(config)
    tuned = [disturbed(bert, seed, 0.2) for seed in (1, 2)]

    def body(model):
        return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}

    ids = torch.randint(30, (12, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        labels = tuned[0].eval()(input_ids=ids, attention_mask=mask).logits.argmax(-1)
    rows = Labelled(12, lambda drawn: ({"input_ids": ids[drawn], "attention_mask": mask[drawn]}, labels[drawn]))
    task = labelled_task("rows", rows, lambda forward, inputs: forward(**inputs).logits, least_batches=10)
    learned = learn_coefficients(
        bert, [difference(body(bert), body(one)) for one in tuned], [task],
        SETTINGS["few-shot"].model_copy(update={"epochs": 3}),
    )  # fmt: skip
    assert bert.training  # as it was: a fresh model is in training mode
    assert not any(name.startswith("classifier") for name in learned.composition.base)
    assert learned.losses[-1] < learned.losses[0]


@pytest.fixture
def family(tmp_path, llama):
    """A base folder and two LoRA adapters of it."""
    llama.save_pretrained(tmp_path / "base")
    folders = []
    for seed in (1, 2):
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        torch.manual_seed(seed)
        with peft_warnings_logged():
            get_peft_model(copy.deepcopy(llama), config).save_pretrained(tmp_path / f"adapter{seed}")
        folders.append(tmp_path / f"adapter{seed}")
    return tmp_path / "base", folders


@pytest.mark.parametrize("partitions", [1, 80])
def test_lora_adapters_are_vectors_with_partitions(family, llama, partitions):
    """PEFT use: adapters stay factors, K coefficients per matrix and adapter are learned, nothing is added to run."""
    base, folders = family
    vectors = [vector_of_folder(base, folder) for folder in folders]
    assert all(isinstance(vector, FactoredVector) for vector in vectors)
    composition = composed(llama, vectors, "tensor", partitions, base=mapped_tensors(base))
    assert composition.parameters == 2 * 4 * partitions
    with peft_warnings_logged():
        with_adapter = PeftModel.from_pretrained(copy.deepcopy(llama), folders[1])
    lam_NC = composition.start()
    lam_NC[1] = 1
    with routed("streamed", llama, composition) as route, torch.no_grad():
        assert route.at(lam_NC)(TOKENS).logits == pytest.approx(with_adapter(TOKENS).logits, abs=1e-5)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    config = SETTINGS["partitioned"].model_copy(update={"epochs": 3, "learning_rate": 0.05})
    learned = learn_coefficients(llama, composition, [language_task()], config)
    assert all(tensor.equal(before[name]) for name, tensor in llama.state_dict().items())
    assert learned.losses[-1] < learned.losses[0]
    assert len(learned.table()["model.layers.0.self_attn.q_proj.weight"]) == 2 * partitions


def test_the_engine_writes_what_folding_gives(family, llama, tmp_path):
    base, adapters = family
    tuned = tmp_path / "tuned"
    disturbed(llama, 5).save_pretrained(tuned)
    folders = [adapters[0], tuned]
    vectors = [vector_of_folder(base, folder) for folder in folders]
    learned = learn_coefficients(llama, vectors, [language_task()], LearningConfig(learning_rate=0.05, epochs=2))
    assert learned.lam_NC[1].ne(0).all()
    merge(as_merge(learned, base, folders), tmp_path / "merged")
    learned.fold_into(llama)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert merged(TOKENS).logits == pytest.approx(llama(TOKENS).logits, abs=1e-5)
    with pytest.raises(MultituneError, match="are no merge of 1 folders"):
        as_merge(learned, base, folders[:1])
