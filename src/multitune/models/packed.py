"""Packed rows: several examples in one row that do not see one another.

Which inputs keep them apart depends on the architecture. There are three routes:

* ``positions``: position ids that restart at 0, no attention mask and no cache; transformers then builds the
  block-diagonal mask itself (with flash attention: sequence lengths).
* ``mask``: a 4-D additive mask [B, 1, S, S] together with the position ids. O(S^2) memory.
* ``unpacked``: nothing keeps them apart; one example per row.

Shape legend: ``B`` rows, ``S`` positions, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.errors import MultituneError
from multitune.models.tuners.task_ids import PROMPTS, SOFT_PROMPT
from multitune.tasks.task import Form

logger = logging.getLogger("multitune.models")

Route = Literal["positions", "mask", "unpacked"]

ROUTES: dict[str, Route] = {
    "arcee": "positions",
    "bloom": "unpacked",  # builds an ALiBi mask of its own and rejects 4-D masks
    "cohere": "positions",
    "cohere2": "positions",
    "gemma": "positions",
    "gemma2": "positions",
    "gemma3_text": "positions",
    "glm": "positions",
    "glm4": "positions",
    "gpt2": "positions",
    "gpt_neox": "positions",
    "granite": "positions",
    "llama": "positions",
    "mistral": "positions",
    "mixtral": "positions",
    "olmo": "positions",
    "olmo2": "positions",
    "opt": "mask",  # builds its causal mask without the position ids
    "phi": "positions",
    "phi3": "positions",
    "qwen2": "positions",
    "qwen2_moe": "positions",
    "qwen3": "positions",
    "qwen3_moe": "positions",
    "smollm3": "positions",
    "stablelm": "positions",
    "starcoder2": "positions",
}
"""Route by ``config.model_type``; any other causal model is probed. Measured on transformers 5.23."""

TOLERANCE: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of a logit, packed against alone, in standard deviations of the logits.

Rounding alone gives 3e-6 to 5e-6 (tiny; GPT-2, OPT, Llama, Qwen2 and Gemma 2 of real widths), 5e-3 and 4e-2; what leaks
is caught by `packing_leak`, which rounding does not touch.
"""

LEAK_TOLERANCE = 0.1
"""Share of TOLERANCE that replacing a neighbour may change: nothing but the order of sums in a few kernels."""

UNPACKED_METHODS = (
    "cartridge", "cpt", "dept", "ept", "mpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning",
    "lily",
)  # fmt: skip
"""Methods under which nothing keeps packed examples apart: virtual tokens stand before the row, not before each
example; and Lily (in peft 0.21) weighs its experts by a mean over all tokens of the batch."""

_PROBE_LENGTHS = (7, 4, 9)
_PROBED: WeakKeyDictionary[nn.Module, Route] = WeakKeyDictionary()


def without_adapters(model: Any) -> Any:
    """Return the transformers model inside a PeftModel (its layers still hold the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_prompt_learning(model: nn.Module) -> bool:
    """Tell whether a PeftModel puts virtual tokens before the input (prompt, prefix and p-tuning)."""
    config = getattr(model, "active_peft_config", None)
    return bool(config is not None and config.is_prompt_learning)


def has_prompts_in_hooks(model: nn.Module) -> bool:
    """Tell whether a hook of ours may put a prompt before the input: that of dept, ept or mpt, or prompts of tasks."""
    plain = without_adapters(model)
    return hasattr(plain, SOFT_PROMPT) or hasattr(plain, PROMPTS)


@torch.compiler.disable
def packing_route(model: nn.Module) -> Route:
    """Return the route that keeps packed examples apart in this model.

    Known architectures are looked up in ROUTES. Others are probed once with random tokens: the first route on which
    packed and alone agree, and neighbours do not matter, is taken.
    """
    plain = without_adapters(model)
    config = getattr(plain, "config", None)
    if config is None or config.is_encoder_decoder or hasattr(plain, PROMPTS):
        return "unpacked"
    adapter = getattr(model, "active_peft_config", None)
    method = adapter.peft_type.value.lower() if adapter is not None else "full"
    route = known_route(config.model_type, method, flash=_uses_flash_attention(plain)) or _PROBED.get(plain)
    if route is None:
        route = _PROBED[plain] = _probe(model)
        logger.info("%s is not in the table of packing routes; probing it gave '%s'", config.model_type, route)
    return "unpacked" if route == "mask" and _uses_flash_attention(plain) else route


def known_route(family: str, method: str, *, flash: bool) -> Route | None:
    """Return the route of a causal model as far as names tell it; None where only its weights do, by probing.

    Args:
        family: ``model_type`` of the transformers config.
        method: ``full``, or peft's name of the adapter in lower case.
        flash: whether it runs on flash attention, which takes no mask.
    """
    if method in UNPACKED_METHODS:
        return "unpacked"
    route = ROUTES.get(family)
    return "unpacked" if route == "mask" and flash else route


def packs(form: Form, pack: Literal["auto", "always", "never"], route: Route | None, architecture: str) -> bool:
    """Decide whether a training's rows hold several examples; the plan and the training both ask here.

    Args:
        form: of the backbone; only causal rows are packed.
        pack: as in the recipe.
        route: of the model; None (not known before the weights are) counts as one that can.
        architecture: named in the error.

    Raises:
        MultituneError: packed rows are asked for, and the model cannot have them.
    """
    can = form == "causal" and route != "unpacked"
    if pack == "always" and not can:
        raise MultituneError(
            f"{architecture} cannot train on packed rows exactly as it is adapted here.",
            "training.pack",
            "Set training.pack to auto or never.",
        )
    return can and pack != "never"


def packed_forward_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keyword arguments for the forward of a causal model that keep packed examples apart.

    Args:
        model: causal LM, with or without adapters.
        batch: ``input_ids``, ``position_ids`` and ``example_ids``, all int64 [B, S]; padding has example id -1.

    Returns:
        Arguments without labels, always with ``use_cache=False``: transformers leaves packed rows unmasked when there
        is a cache. With flash attention the rows are laid out as one, [1, B * S].

    Raises:
        MultituneError: packed rows for a model whose route is ``unpacked``.
    """
    return _inputs(without_adapters(model), packing_route(model), batch)


def _inputs(plain: Any, route: Route, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    input_ids, position_ids, example_ids = batch["input_ids"], batch["position_ids"], batch["example_ids"]
    if route == "unpacked":
        _refuse_packed_rows(plain, example_ids)
        return {"input_ids": input_ids, "attention_mask": (example_ids >= 0).long(), "use_cache": False}
    if route == "mask":
        mask = block_causal_mask(example_ids, plain.dtype)
        return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask, "use_cache": False}
    if _uses_flash_attention(plain):
        return _one_row(input_ids, position_ids)
    return {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}


def block_causal_mask(example_ids_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [B, 1, S, S]: 0 where i sees j (j <= i, same example), the dtype's minimum elsewhere."""
    positions = example_ids_BS.shape[1]
    same_BSS = example_ids_BS[:, :, None] == example_ids_BS[:, None, :]
    seen_BSS = same_BSS & torch.ones(positions, positions, dtype=torch.bool, device=same_BSS.device).tril()
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=same_BSS.device)
    return torch.where(seen_BSS, torch.zeros_like(hidden), hidden)[:, None]


def _one_row(input_ids: Tensor, position_ids: Tensor) -> dict[str, Any]:
    """Lay the rows out as one: transformers looks for packed sequences under flash attention only when B is 1."""
    starts = F.pad((position_ids.flatten() == 0).nonzero().flatten(), (0, 1), value=position_ids.numel())
    cumulative, longest = starts.to(torch.int32), int(starts.diff().max())
    return {
        "input_ids": input_ids.reshape(1, -1),
        "position_ids": position_ids.reshape(1, -1),
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


def _uses_flash_attention(plain: Any) -> bool:
    return "flash" in (getattr(plain.config, "_attn_implementation", None) or "")


def _refuse_packed_rows(plain: Any, example_ids_BS: Tensor) -> None:
    padding_BS = example_ids_BS < 0
    if bool(((example_ids_BS != example_ids_BS[:, :1]) & ~padding_BS).any()):
        raise MultituneError(
            f"{type(plain).__name__} cannot keep several examples of one row apart.",
            "packing",
            "Give one example per row (training.pack: never).",
        )


def check_packing(backbone: Any) -> None:
    """Refuse a backbone whose packed rows are not the same training as its examples alone.

    Args:
        backbone: a Backbone; encoders, encoder-decoder models and models on the route ``unpacked`` pass unchecked,
            because they are never given packed rows.

    Raises:
        MultituneError: packed and alone disagree beyond TOLERANCE, or a neighbour's tokens matter.
    """
    model = backbone.model
    if backbone.form != "causal" or packing_route(model) == "unpacked":
        return
    error, leak = packing_error(model), packing_leak(model)
    tolerance = TOLERANCE[without_adapters(model).dtype]
    if not (error <= tolerance and leak <= LEAK_TOLERANCE * tolerance):
        raise MultituneError(
            f"Packed rows change what {type(without_adapters(model)).__name__} computes: "
            f"difference {error:.2g} (at most {tolerance:g}), leak {leak:.2g}.",
            f"model {backbone.config.name}, transformers {_transformers_version()}",
            "Set training.pack: never, and report the model so that its route can be mended.",
        )
    logger.info("packed rows equal single examples (difference %.1e, leak %.1e)", error, leak)


def packing_error(model: nn.Module, seed: int = 0, route: Route | None = None) -> float:
    """Return the largest difference of a logit between packed and alone, in standard deviations of the logits.

    Three random examples in two rows, in different orders, with padding, against each example in a row of its own
    with the model's defaults.
    """
    examples = _random_examples(model, seed)
    plain = without_adapters(model)
    with evaluating(model), torch.no_grad():
        packed = _packed_logits(model, examples, route or packing_route(model))
        alone = [model(input_ids=ids[None].to(plain.device), use_cache=False).logits[0] for ids in examples]
    differences = [logit_difference(piece, alone[index]) for index, piece in packed]
    return max(differences)


def packing_leak(model: nn.Module, seed: int = 0, route: Route | None = None) -> float:
    """Return how much an example's logits change when the tokens of its neighbours do; 0 is exact isolation.

    Same shapes and positions in both passes, so that rounding has no part in it.
    """
    examples, others = _random_examples(model, seed), _random_examples(model, seed + 1)
    route = route or packing_route(model)
    leak = 0.0
    with evaluating(model), torch.no_grad():
        before = _packed_logits(model, examples, route)
        for kept in range(len(examples)):
            changed = [ids if index == kept else others[index] for index, ids in enumerate(examples)]
            after = _packed_logits(model, changed, route)
            pairs = zip(before, after, strict=True)
            leak = max(leak, *(logit_difference(b[1], a[1]) for a, b in pairs if a[0] == kept))
    return leak


def _packed_logits(model: nn.Module, examples: list[Tensor], route: Route) -> list[tuple[int, Tensor]]:
    """Run the examples packed in two rows, the second in reverse order; return (example, its logits) pairs."""
    plain = without_adapters(model)
    orders = [list(range(len(examples))), list(reversed(range(len(examples))))]
    rows = [[(index, examples[index]) for index in order] for order in orders]
    batch = {name: tensor.to(plain.device) for name, tensor in _pack_probe(rows).items()}
    logits = model(**_inputs(plain, route, batch)).logits
    logits_BSV = logits.reshape(*batch["input_ids"].shape, logits.shape[-1])
    return [(i, logits_BSV[row][batch["example_ids"][row] == i]) for row, order in enumerate(orders) for i in order]


def _pack_probe(rows: list[list[tuple[int, Tensor]]]) -> dict[str, Tensor]:
    """Lay (id, tokens) pairs out in rows, as the training batches are, with two positions of padding."""
    padding = torch.zeros(2, dtype=torch.long)
    ids = [torch.cat([*(tokens for _, tokens in row), padding]) for row in rows]
    positions = [torch.cat([torch.arange(len(t)) for t in [*(tokens for _, tokens in row), padding]]) for row in rows]
    examples = [torch.cat([*(torch.full_like(tokens, i) for i, tokens in row), padding - 1]) for row in rows]
    return {
        "input_ids": torch.stack(ids),
        "position_ids": torch.stack(positions),
        "example_ids": torch.stack(examples),
    }


def _random_examples(model: nn.Module, seed: int) -> list[Tensor]:
    vocabulary = without_adapters(model).config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in _PROBE_LENGTHS]


def logit_difference(logits_SV: Tensor, reference_SV: Tensor) -> float:
    """Largest absolute difference in standard deviations over the vocabulary; NaN counts as infinite."""
    reference = reference_SV.float()
    spread = reference.std(dim=-1).mean().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((logits_SV.float() - reference).abs().max() / spread)
    return difference if difference == difference else float("inf")


def _probe(model: nn.Module) -> Route:
    plain = without_adapters(model)
    # a 4-D mask switches sliding windows off, which examples of a few tokens cannot show
    windowed = getattr(plain.config.get_text_config(), "sliding_window", None) is not None
    candidates: tuple[Route, ...] = ("positions",) if windowed else ("positions", "mask")
    for route in candidates:
        try:
            error, leak = packing_error(model, route=route), packing_leak(model, route=route)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            continue  # the architecture does not take these inputs
        tolerance = TOLERANCE[plain.dtype]
        if error <= tolerance and leak <= LEAK_TOLERANCE * tolerance:
            return route
    return "unpacked"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _transformers_version() -> str:
    import transformers

    return transformers.__version__
