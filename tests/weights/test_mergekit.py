"""mergekit's files mean here what they mean there; what cannot be meant is refused with the nearest name."""

from __future__ import annotations

import logging

import pytest
import yaml

from multitune.errors import MultituneError, MultituneErrors
from multitune.models.architecture import architecture_index
from multitune.weights.mergekit import is_mergekit, read_mergekit
from multitune.weights.parameters import check, resolved

PLACES = architecture_index(
    {
        "model.embed_tokens.weight": (8, 4),
        **{f"model.layers.{layer}.mlp.up_proj.weight": (8, 4) for layer in range(4)},
        **{f"model.layers.{layer}.self_attn.q_proj.weight": (4, 4) for layer in range(4)},
        "model.norm.weight": (4,),
        "lm_head.weight": (8, 4),
    }
)


def read(text):
    data = yaml.safe_load(text)
    assert is_mergekit(data)
    config = read_mergekit(data, "merge.yaml")
    check(config)
    return config


def at(config, name):
    """The parameters of a merge of whole models at one tensor."""
    own = [each.parameters for each in config.models]
    return resolved(config.method, own, [config.parameters], PLACES[name], config.compat)


TIES = """
models:
  - model: base
  - model: a
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""


def test_a_ties_merge_with_lists_and_filters():
    config = read(TIES)
    assert [each.model for each in config.models] == ["a", "b", "c"]  # the base has no task vector
    assert (config.base, config.dtype, config.compat) == ("base", "float16", "mergekit")
    inner = at(config, "model.layers.1.mlp.up_proj.weight")
    assert inner["density"] == pytest.approx([1 - 0.3 * 2 / 3, 0.5, 0.33])
    assert inner["weight"] == pytest.approx([1.0, 0.3, 0.5])
    assert at(config, "model.layers.3.self_attn.q_proj.weight")["weight"] == pytest.approx([1.0, 1.0, 0.0])
    assert (inner["normalize"], inner["lambda"], inner["granularity"]) == (1.0, 1.0, "layer")


def test_tensors_outside_the_layers_take_the_first_value_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="multitune.weights"):
        logging.getLogger("multitune").propagate = True
        config = read(TIES)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert at(config, name)["density"] == pytest.approx([1.0, 0.5, 0.33])
        assert at(config, name)["weight"] == pytest.approx([1.0, 0.0, 0.0])
    assert "take the first value" in caplog.text
    assert "a.density" in caplog.text
    assert "b.weight" in caplog.text


@pytest.mark.parametrize(
    ("method", "normalize"),
    [
        ("linear", 1.0),
        ("ties", 1.0),
        ("della", 1.0),
        ("task_arithmetic", 0.0),
        ("dare_ties", 0.0),
        ("dare_linear", 0.0),
        ("breadcrumbs", 0.0),
        ("breadcrumbs_ties", 0.0),
        ("della_linear", 0.0),
    ],
)
def test_defaults_are_those_of_mergekit(method, normalize):
    config = read(f"{{models: [{{model: a}}, {{model: b}}], merge_method: {method}, base_model: base}}")
    found = at(config, "model.norm.weight")
    assert found["normalize"] == normalize
    assert found.get("lambda", 1.0) == 1.0
    assert found.get("density", [1.0, 1.0]) == [1.0, 1.0]
    assert found.get("epsilon", [0.15, 0.15]) == [0.15, 0.15]
    assert found.get("keep", [1.0, 1.0]) == [1.0, 1.0]
    assert found.get("drop_top", [0.01, 0.01]) == [0.01, 0.01]
    rescales = method.startswith(("dare", "della"))
    assert found.get("rescale", float(rescales)) == float(rescales)


def test_the_nearest_level_wins():
    config = read(
        """
modules:
  default:
    models:
      - {model: a, parameters: {weight: [{filter: mlp, value: 0.1}]}}
      - {model: b}
    parameters: {weight: 0.2}
merge_method: task_arithmetic
base_model: base
parameters: {weight: 0.3, lambda: 0.5}
"""
    )
    assert at(config, "model.layers.0.mlp.up_proj.weight")["weight"] == [0.1, 0.2]
    assert at(config, "model.norm.weight")["weight"] == [0.2, 0.2]  # where the rule is silent the next level speaks
    assert at(config, "model.norm.weight")["lambda"] == 0.5


def test_the_first_filter_that_matches_decides_and_brackets_are_letters():
    config = read(
        """
models:
  - model: a
    parameters:
      weight:
        - {filter: "self_attn", value: 0.5}
        - {filter: "layers.1.", value: 0.7}
        - {filter: "[0-9]", value: 9}
        - {filter: "*", value: 0.1}
        - {filter: "norm", value: 8}
merge_method: task_arithmetic
base_model: base
"""
    )
    assert at(config, "model.layers.1.self_attn.q_proj.weight")["weight"] == [0.5]
    assert at(config, "model.layers.1.mlp.up_proj.weight")["weight"] == [0.7]
    assert at(config, "model.layers.2.mlp.up_proj.weight")["weight"] == [0.1]
    assert at(config, "model.norm.weight")["weight"] == [0.1]


def test_slerp_begins_at_its_base_whatever_the_order():
    sources = "{model: b, layer_range: [0, 4]}, {model: a, layer_range: [0, 4]}"
    config = read(
        f"""
slices: [{{sources: [{sources}]}}]
merge_method: slerp
base_model: a
parameters: {{t: [{{filter: self_attn, value: [0, 0.5, 1]}}, {{value: 0.5}}]}}
"""
    )
    assert [source.model for source in config.slices[0].sources] == ["a", "b"]
    assert config.slices[0].sources[0].layers == (0, 4)
    assert config.base is None


def test_layers_are_stacked():
    config = read(
        """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
merge_method: passthrough
dtype: bfloat16
"""
    )
    assert [part.sources[0].layers for part in config.slices] == [(0, 3), (1, 4)]
    assert config.slices[1].sources[0].parameters == {"scale": {"*o_proj*": 0.0, "default": 1.0}}


def test_adapters_on_the_base_are_task_vectors():
    config = read(
        "{models: [{model: base+one}, {model: {model: base, lora: two}}], merge_method: ties, base_model: base}"
    )
    assert [each.model for each in config.models] == ["one", "two"]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("{}", ("refuse", None, None)),
        ("{tokenizer_source: union, dtype: bfloat16, out_dtype: float32}", ("union", "float32", None)),
        ("{tokenizer: {source: base}, dtype: fp16}", ("base", "float16", None)),
        ("{tokenizer_source: base, chat_template: auto}", ("base", None, None)),
        ("{chat_template: '{{ messages }}'}", ("refuse", None, "{{ messages }}")),
    ],
)
def test_types_tokenizers_and_templates(lines, wanted):
    data = {"models": [{"model": "a"}, {"model": "b"}], "merge_method": "linear", **yaml.safe_load(lines)}
    config = read_mergekit(data, "merge.yaml")
    assert (config.vocabulary, config.dtype, config.chat_template) == wanted


PLAIN = {"models": [{"model": "a"}, {"model": "b"}], "merge_method": "ties", "base_model": "base"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"base_modle": "x"}, "no key 'base_modle' here. Did you mean 'base_model'"),
        ({"merge_method": "tie"}, "Did you mean 'ties'"),
        ({"merge_method": "karcher"}, "not offered here"),
        ({"parameters": {"densty": 0.2}}, "Did you mean 'density'"),
        ({"parameters": {"keep": 0.2}, "merge_method": "breadcrumbs"}, "no parameter 'keep'"),
        ({"models": [{"model": "a", "paramters": {}}]}, "Did you mean 'parameters'"),
        ({"models": [{"model": "a", "parameters": {"normalize": True}}]}, "one for the whole merge"),
        ({"models": [{"modle": "a"}]}, "Did you mean 'model'"),
        ({"slices": []} | {"models": []}, "exactly one of models, slices and modules"),
        ({"parameters": {"density": "half"}}, "'half' is not a number"),
        ({"parameters": {"density": [{"fliter": "mlp", "value": 1}]}}, "A rule has a value and a filter"),
        ({"dtype": "int8"}, "The type 'int8' is not offered"),
        ({"tokenizer_source": "other/model"}, "The tokenizer of 'other/model' cannot be taken"),
        ({"tokenizer": {"source": "union", "tokens": {}}}, "Rules for single tokens"),
        ({"chat_template": "vicuna"}, "The chat template 'vicuna' is not known"),
        ({"models": [{"model": "else+adapter"}]}, "which is not the base of the merge"),
        ({"merge_method": "slerp"}, "slerp goes from base_model"),
        ({"models": "a"}, "The file is no merge"),
        ({"modules": {"a": {}, "b": {}}, "models": None}, "2 modules"),
        ({"models": None, "slices": [{"sources": [{"model": "a"}]}]}, "the key 'layer_range' is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, what):
    with pytest.raises((MultituneError, MultituneErrors)) as caught:
        read_mergekit({**PLAIN, **change}, "merge.yaml")
    assert what in str(caught.value)
    assert "merge.yaml" in str(caught.value)


def test_a_parameter_that_the_method_does_not_read_is_left_out_with_a_word(caplog):
    with caplog.at_level(logging.WARNING, logger="multitune.weights"):
        logging.getLogger("multitune").propagate = True
        config = read_mergekit({**PLAIN, "merge_method": "task_arithmetic", "parameters": {"density": 0.5}}, "m.yaml")
    assert config.parameters == {}
    assert "does not read density" in caplog.text
