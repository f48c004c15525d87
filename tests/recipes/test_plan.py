"""The plan counts what training will do."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import _pieces, plan


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_rows_of_prompt_learning_are_counted_one_example_each(recipe, write, method):
    recipe["steps"]["joint"]["training"] = {"epochs": 1, "batch_size": 4, "max_length": 64}
    packed = plan(load_recipe(write(recipe))).nodes[0]
    recipe["steps"]["joint"]["adapt"] = {"method": method, "num_virtual_tokens": 2}
    alone = plan(load_recipe(write(recipe))).nodes[0]
    assert alone.steps == 12  # 48 examples
    assert packed.steps < 12


def test_what_a_balancer_keeps_and_waits_for_is_in_the_plan(recipe, write):
    def planned(balancer):
        recipe["steps"]["joint"]["training"]["balancer"] = balancer
        return plan(load_recipe(write(recipe))).nodes[0]

    for name in ("sign", "echo"):
        recipe["tasks"][name]["validation"] = {"fraction": 0.2}
    plain, apart = planned(None), planned("pcgrad")
    assert apart.memory_bytes - plain.memory_bytes == 2 * 4 * plain.trainable
    steps = plain.steps
    (warning,) = set(planned({"method": "coba", "warmup_steps": max(2, steps)}).warnings) - set(plain.warnings)
    assert "CoBa weighs uniformly" in warning


def test_packing_that_cannot_be_is_refused_by_the_plan_as_by_training(recipe, write):
    from multitune.errors import MultituneError

    recipe["steps"]["joint"]["adapt"] = "prompt_tuning"
    recipe["steps"]["joint"]["training"]["pack"] = "always"
    with pytest.raises(MultituneError, match="cannot train on packed rows"):
        plan(load_recipe(write(recipe)))


def sentencepiece_like() -> PreTrainedTokenizerFast:
    words = [
        "<unk>",
        "\u2581",
        "\u2581the",
        "\u2581quick",
        "er",
        "\u2581fox",
        ".",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("text", ["the quicker fox.", "the \u00e9 fox", "the \u732b"])
def test_a_sample_reads_as_it_is_written(text):
    tokenizer = sentencepiece_like()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = _pieces(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_words_that_a_piece_continues_are_joined(tmp_path):
    from transformers import BertTokenizerFast

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "quick", "##er", "fox"]))
    tokenizer = BertTokenizerFast(str(vocabulary))
    assert _pieces(tokenizer("quicker fox", add_special_tokens=False).input_ids, tokenizer) == ["quick", "er", " fox"]
