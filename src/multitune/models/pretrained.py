"""Pretrained backbones: facts without weights, tokenizer, model."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from multitune.errors import MultituneError, nearest
from multitune.models.config import ModelConfig
from multitune.models.location import PACKAGED, resolve
from multitune.models.positions import usable_positions
from multitune.tasks.task import Form, Task

logger = logging.getLogger("multitune.models")

BYTES_QUANTIZED = {"4bit": 0.5, "8bit": 1.0}
"""Bytes per weight after quantisation, without the scales (about 3 % more)."""


@dataclass
class Backbone:
    """A model ready to be adapted, trained or scored.

    Attributes:
        model: a transformers model, a PeftModel around one, or a MultiTaskEncoder.
        tokenizer: always with a pad token.
        form: causal, seq2seq or encoder.
        config: how it was asked for.
        tasks: encoders only: the tasks of the heads, in the order of their task ids.
        rounds: how many trainings made these weights, as far as this package did them.
        half: the `multitune.adaptation.half.HalfRound` that it is in, where half of it is frozen.
        update: the `multitune.adaptation.updates.UpdateRule` of a method that acts on the optimiser.
    """

    model: Any
    tokenizer: Any
    form: Form
    config: ModelConfig
    tasks: tuple[Task, ...] = ()
    rounds: int = 0
    half: Any = None
    update: Any = None


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without reading its weights.

    Attributes:
        config: the question.
        location: folder or hub id that is loaded.
        architecture: class of the transformers model.
        family: ``model_type`` of its config.
        form: causal, seq2seq or encoder (heads are not counted).
        parameters: number of weights; tied ones count once.
        dtype: of the weights in memory, on the device that would be chosen here.
        bytes: of the weights in memory.
        vocabulary: rows of the embedding.
        max_positions: longest input in tokens; None where positions are relative.
        hidden_size: width.
        layers: number of blocks (encoder-decoder: of the decoder).
    """

    config: ModelConfig
    location: str
    architecture: str
    family: str
    form: Form
    parameters: int
    dtype: str
    bytes: int
    vocabulary: int
    max_positions: int | None
    hidden_size: int
    layers: int


def model_facts(config: ModelConfig) -> ModelFacts:
    """Return a model's size and shape; reads its config only (parameters are counted on the meta device).

    Raises:
        MultituneError: the model cannot be found, or its config cannot be used.
    """
    location = resolve(config)
    model, form = empty_model(config)
    text = model.config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = chosen_dtype(config, chosen_device("auto"))
    width = BYTES_QUANTIZED[config.quantize] if config.quantize else dtype.itemsize
    decoder_layers = getattr(text, "num_decoder_layers", None) or getattr(text, "decoder_layers", None)
    return ModelFacts(
        config=config,
        location=location,
        architecture=type(model).__name__,
        family=model.config.model_type,
        form=form,
        parameters=parameters,
        dtype=str(dtype).removeprefix("torch."),
        bytes=round(parameters * width),
        vocabulary=text.vocab_size,
        max_positions=usable_positions(model),
        hidden_size=text.hidden_size,
        layers=decoder_layers or text.num_hidden_layers,
    )


def model_form(config: ModelConfig) -> Form:
    """Return whether a model is causal, seq2seq or an encoder; reads its config at most."""
    if config.form is not None:
        return config.form
    with told_in_our_words(config):
        return inferred_form(_pretrained_config(resolve(config), hub_arguments(config)))


def empty_model(config: ModelConfig) -> tuple[Any, Form]:
    """Return the model on the meta device (shapes, no weights) and its form."""
    hub = hub_arguments(config)
    location = resolve(config)
    with told_in_our_words(config):
        pretrained = _pretrained_config(location, hub)
        form = config.form or inferred_form(pretrained)
        with torch.device("meta"):
            model = _auto_class(form).from_config(pretrained, trust_remote_code=config.trust_remote_code)
    return model, form


def inferred_form(pretrained: Any) -> Form:
    """Tell from a transformers config whether a model is an encoder-decoder LM, a causal LM or an encoder.

    The class that the weights were saved as decides; a class without a head (``BertModel``, ``LlamaModel``) is an
    encoder if its family has masked language models.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if pretrained.is_encoder_decoder:
        return "seq2seq"
    saved_as = (getattr(pretrained, "architectures", None) or [""])[0]
    if saved_as.endswith(("ForCausalLM", "LMHeadModel")) or getattr(pretrained, "is_decoder", False):
        return "causal"
    family = pretrained.model_type
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "causal"
    return "encoder"


def load_tokenizer(config: ModelConfig) -> Any:
    """Return the model's tokenizer, with a pad token.

    Where none is defined, the unknown or else the end token pads: labels never depend on it, and no embedding is
    added.

    Raises:
        MultituneError: there is no tokenizer beside the model.
    """
    from transformers import AutoTokenizer

    location, hub = resolve(config), hub_arguments(config)
    with told_in_our_words(config):
        tokenizer = AutoTokenizer.from_pretrained(location, **hub)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise MultituneError(
                "The tokenizer has no token that could pad (no pad, unknown or end token).",
                f"model {config.name}",
                "Add pad_token to its tokenizer_config.json.",
            )
        logger.info("%s has no pad token; '%s' pads", config.name, tokenizer.pad_token)
    return tokenizer


def load_pretrained(config: ModelConfig, device: str = "auto", seed: int = 0) -> Backbone:
    """Load tokenizer and weights as they are; an encoder comes without heads. Arguments as for
    `multitune.models.loading.load_backbone`."""
    place = chosen_device(device)
    dtype = chosen_dtype(config, place)
    location, hub = resolve(config), hub_arguments(config)
    how: dict[str, Any] = {}
    if config.attn_implementation is not None:
        how["attn_implementation"] = config.attn_implementation
    if config.quantize is not None:
        how |= {"quantization_config": quantization(config, dtype, place), "device_map": {"": place}}
    if config.name in PACKAGED and location != config.name:
        logger.info("%s is read from the installed package %s", config.name, PACKAGED[config.name])
    if place.type != "cuda" and config.dtype in ("bfloat16", "float16"):
        logger.info("%s is cast to float32: %s is very slow on a CPU", config.name, config.dtype)
    tokenizer = load_tokenizer(config)
    with told_in_our_words(config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        form = config.form or inferred_form(_pretrained_config(location, hub))
        model = _auto_class(form).from_pretrained(location, dtype=dtype, use_safetensors=True, **hub, **how)
        if config.quantize is None:
            model = model.to(place)
    _agree_on_tokens(model, tokenizer, config)
    if config.name in PACKAGED:
        model.name_or_path = config.name  # what an adapter will call its base, on any machine
    logger.info("%s: %s on %s in %s", config.name, type(model).__name__, place, str(dtype).removeprefix("torch."))
    return Backbone(model.eval(), tokenizer, form, config)


def chosen_device(device: str) -> torch.device:
    """Return the device asked for; ``auto`` is the GPU of this process (LOCAL_RANK), or the CPU if there is none."""
    if device == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def chosen_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the weights: float32 on a CPU, whatever is asked for; bfloat16 by default on a GPU."""
    if device.type != "cuda":
        return torch.float32
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.dtype]


def quantization(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the BitsAndBytesConfig: 8-bit, or 4-bit NormalFloat with nested scales as in QLoRA (arXiv:2305.14314).

    Raises:
        MultituneError: no GPU, or bitsandbytes is not installed.
    """
    import importlib.util

    where = f"model.quantize: {config.quantize}"
    if device.type != "cuda":
        raise MultituneError("Quantised weights need a GPU.", where, "Remove model.quantize, or run on a GPU.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MultituneError(
            "Quantised weights need the package bitsandbytes.", where, "pip install 'multitune[quantization]'."
        )
    from transformers import BitsAndBytesConfig

    if config.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _pretrained_config(location: str, hub: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(location, **hub)


def _auto_class(form: Form) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}[form]


def hub_arguments(config: ModelConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        arguments["revision"] = config.revision
    if resolve(config) == config.name and not hub_is_reachable():
        arguments["local_files_only"] = True
    return arguments


@cache
def hub_is_reachable() -> bool:
    """Tell whether the hub's host can be connected to; behind a proxy it is taken for granted.

    Without a network the hub's client asks each file of a model six times, for half a minute, before it looks into its
    cache or gives up.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError:
        return False
    return True


def _agree_on_tokens(model: Any, tokenizer: Any, config: ModelConfig) -> None:
    """Check that every token has an embedding, and let the model know what pads."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise MultituneError(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}.",
            f"model {config.name}",
            "Use the tokenizer that belongs to the model.",
        )
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


@contextmanager
def peft_warnings_logged(level: int = logging.INFO) -> Iterator[None]:
    """Send peft's warnings for users to the log; those about its own use of other libraries concern nobody here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning | FutureWarning):
            logger.log(level, "peft: %s", warning.message)


@contextmanager
def told_in_our_words(config: ModelConfig) -> Iterator[None]:
    """Turn the ways in which loading fails into one user-facing error."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        for known, what, mend in _FAILURES:
            if known(error, str(error)):
                what = what.format(name=config.name) + nearest(config.name, ["tiny"])
                if known is _unreachable and os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
                    mend += " HF_HUB_OFFLINE is set: without it the hub would be asked."
                raise MultituneError(what, f"model.name: {config.name}", mend) from error
        raise MultituneError(
            f"The model '{config.name}' cannot be loaded: {first_line}",
            f"model.name: {config.name}",
            "Check that the folder is a transformers model and that this version of transformers knows it.",
        ) from error


def _unreachable(error: BaseException, text: str) -> bool:
    unreachable = (
        "couldn't connect",
        "offline mode",
        "cached files",
        "local_files_only",
        "Connection",
        "Max retries",
        "LocalEntryNotFound",
        "resolve",
    )
    return isinstance(error, OSError) and any(words in text for words in unreachable)


_FAILURES: tuple[tuple[Callable[[BaseException, str], bool], str, str], ...] = (
    (
        lambda error, text: "trust_remote_code" in text,
        "The model '{name}' needs Python code from its repository.",
        "Read that code; if you trust it, set model.trust_remote_code: true.",
    ),
    (
        _unreachable,
        "The model '{name}' is not on this machine and the hub cannot be reached.",
        "Give the path of a model folder (model: path/to/folder), or download it once where there is a network.",
    ),
    (
        lambda error, text: ("safetensors" in text and "not appear to have" in text) or "no file named" in text,
        "The model '{name}' has no safetensors weights.",
        "Take a revision with safetensors, or convert the weights with save_pretrained where you trust them.",
    ),
    (
        lambda error, text: "gated repo" in text or "401" in text or "403" in text,
        "The model '{name}' may not be downloaded without permission.",
        "Ask for access on the hub and log in with `hf auth login`.",
    ),
    (
        lambda error, text: "not a valid model identifier" in text or "404" in text,
        "There is no model '{name}' on the hub, nor a folder of that name.",
        "Check the spelling, or give the path of a model folder.",
    ),
)
