"""The registry: every way of adapting a model, what it does, what it keeps, and where it comes from.

Where peft's default places an adapter on two attention projections from a table of known architectures, ours is every
linear layer: it holds for every architecture, and QLoRA (arXiv:2305.14314, section 4) found it necessary to match full
fine-tuning. Methods that act elsewhere (norms, biases, embeddings, keys and values) keep peft's own places.

The families are those of a survey (arXiv:2501.13787): selective methods train a part of the weights that are there,
additive ones new modules, prompt methods inputs, reparameterisations a change of the weights in few numbers, hybrid
ones several of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["selective", "additive", "prompt", "reparameterisation", "hybrid"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way of adapting a model.

    Attributes:
        family: of the survey.
        rule: what is computed, W0 being a weight of the base with d_out rows and d_in columns, h a hidden state.
        trains: how many numbers per place that it acts on, by its own options.
        source: arXiv number, or address, of the paper.
        defaults: options that differ from peft's defaults.
        size: the option that a budget of trainable numbers sets; None where no single one does.
        smallest: the least size that trains anything.
        multiple: a budget takes multiples of this only.
        follows: options that a budget sets with ``size``: each is size times the factor.
        merges: whether the change can be added into the weights, so that inference costs nothing more.
        identity: whether the model answers like its base before training.
        needs_task: whether a forward needs the tasks of its rows.
        quantised: whether it can stand on a base in 4 or 8 bits.
        modalities: what the adapted models may read; "any" where the method only sees linear layers or norms.
        placed_as: the method of peft that places its modules, where it is another one under another optimiser.
    """

    family: Family
    rule: str
    trains: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    size: str | None = None
    smallest: int = 1
    multiple: int = 1
    follows: Mapping[str, float] = field(default_factory=dict)
    merges: bool = True
    identity: bool = True
    needs_task: bool = False
    quantised: bool = False
    modalities: tuple[str, ...] = ("any",)
    placed_as: str | None = None


def _linear(rule: str, trains: str, source: str, **known: Any) -> Method:
    """A reparameterisation of every linear layer."""
    defaults = {"target_modules": "all-linear", **known.pop("defaults", {})}
    return Method("reparameterisation", rule, trains, source, defaults, **known)


def _prompt(rule: str, trains: str, source: str, **known: Any) -> Method:
    """A method that learns inputs; 20 of them, from which gains level off (arXiv:2104.08691, section 3.2)."""
    known = {"defaults": {"num_virtual_tokens": 20}, "size": "num_virtual_tokens", "identity": False, **known}
    return Method("prompt", rule, trains, source, merges=False, modalities=("text",), quantised=True, **known)


def _lora(rule: str, trains: str, source: str, **known: Any) -> Method:
    """LoRA with an optimiser of its own."""
    # rank 16 with alpha = 2 r: what LLaMA-Factory, Axolotl and TRL examples use; QLoRA found the rank to matter little
    defaults = {"r": 16, "lora_alpha": 32}
    return _linear(rule, trains, source, defaults=defaults, size="r", follows={"lora_alpha": 2}, **known)


RANK = "r (d_in + d_out) per matrix"

METHODS: dict[str, Method] = {
    "full": Method("selective", "every weight", "all of them", "none", identity=True),
    "half": Method(
        "selective", "half of the matrices of every layer, drawn anew each round", "about half", "2404.18466"
    ),
    "bitfit": Method(
        "selective", "the biases of the linear layers and norms", "d_out per bias", "2106.10199"
    ),
    "beft": Method(
        "selective", "a bias on the value projections", "d_out per matrix", "2509.15974", merges=False
    ),  # no layer takes a bias that it has not got
    "binary_mask": Method(
        "selective", "W0 * 1[M > tau]: which weights stay, with straight-through gradients", "d_in d_out per matrix",
        "2004.12406",
    ),
    "child_tuning": Method(
        "selective", "a part of the entries of every weight, drawn at each step (F) or of most Fisher information (D)",
        "all of them (F), reserve x all (D)", "2109.05687",
    ),
    "diff_pruning": Method(
        "selective", "W0 + z * w with gates z that are learned to be zero; in the end a share of the entries changes",
        "2 d_in d_out per matrix, of which keep d_in d_out change in the end", "2012.07463",
    ),
    "fish": Method(
        "selective", "the entries of the weights with the largest Fisher information", "keep", "2111.09839",
        size="keep",
    ),
    "ln_tuning": Method("selective", "gains and biases of the norms", "the norms' sizes", "2312.11420"),
    "shira": Method(
        "selective", "W0 + a sparse change at fixed places", RANK, "2406.13175",
        {"target_modules": "all-linear"},
    ),
    "supertuning": Method(
        "selective", "the largest weights of every matrix", "keep_ratio d_in d_out per matrix", "2607.09287",
        {"target_modules": "all-linear"},
    ),
    "trainable_tokens": Method(
        "selective", "rows of the embedding", "width per token", "https://huggingface.co/docs/peft",
        modalities=("text",),
    ),
    "adamix": Method(
        "additive", "several bottlenecks at every place: one drawn for each pass of training, their average afterwards",
        "n_modules (2 r d + r + d) per place", "2205.12410", size="r", merges=False,
    ),
    "adapter_bias": Method(
        "additive", "h + v (w . h + b) behind every feed-forward: one vector, scaled by each token",
        "2 d + 1 per layer", "2205.00305", merges=False,
    ),
    "adaption_prompt": Method(
        "additive", "prompts in the upper layers' attention, behind a gate that starts at zero",
        "adapter_len x width + 1 per layer", "2303.16199", {"adapter_len": 10}, "adapter_len",
        merges=False, modalities=("text",),
    ),
    "bottleneck": Method(
        "additive", "h + s U f(D h) behind attention and feed-forward, behind the latter alone, or beside it",
        "2 r d + r + d per place", "1902.00751", size="r", merges=False,
    ),
    "ia3": Method(
        "additive", "a learned factor for every key, value and feed-forward activation", "d per place", "2205.05638",
        quantised=True,
    ),
    "shadow": Method(
        "additive", "a small network beside the base, which corrects the input of every layer",
        "the small network, and r x width twice per layer", "2604.19254", merges=False, modalities=("text",),
    ),
    "compacter": Method(
        "hybrid", "bottlenecks behind attention and feed-forward, out of Kronecker products that layers share",
        "3 (d + r) per place + n³", "2106.04647", size="r", smallest=4, multiple=4, merges=False,
    ),
    "diff_fit": Method(
        "hybrid", "biases and norms, and a factor for what every sublayer adds",
        "the biases' and norms' sizes + 2 per layer", "2304.06648",
    ),
    "mam": Method(
        "hybrid", "learned keys and values in every attention, and h -> y + s U f(D h) beside every feed-forward",
        "2 prefix_length x width of keys per attention + 2 r d + r + d per feed-forward", "2110.04366", size="r",
        follows={"prefix_length": 30 / 512}, merges=False, identity=False,
    ),
    "unipelt": Method(
        "hybrid", "learned keys and values, LoRA on queries and values, adapters behind feed-forwards; a gate for each",
        "2 prefix_length x width of keys + d + 1 per attention, lora_r (d_in + d_out) + d_in + 1 per matrix, "
        "2 r d + r + 2 d + 1 per feed-forward",
        "2110.07577", size="r", follows={"prefix_length": 10 / 48, "lora_r": 8 / 48, "lora_alpha": 16 / 48},
        merges=False, identity=False,
    ),
    "cartridge": _prompt(
        "keys and values of every layer, learned themselves", "2 (tokens - 1) x layers x width of keys", "2506.06266",
        smallest=2,
    ),
    "cpt": Method(
        "prompt", "the embeddings of examples in the prompt", "tokens x width", "2410.17222",
        merges=False, identity=False, quantised=True, modalities=("text",),
    ),
    "dept": _prompt(
        "a short prompt, and a low-rank change of the text's embeddings by position",
        "tokens x width + r (max_length + width)", "2309.05173", defaults={}, follows={"r": 1 / 2},
    ),
    "ept": _prompt(
        "dept whose prompt attends to the changes (fusion) and adds gated projections of itself (spaces)",
        "tokens x width + r (max_length + width) + n_spaces (2 space_rank + 1) width", "2405.11464", defaults={},
        follows={"r": 3 / 4},
    ),
    "mpt": _prompt(
        "a shared prompt times low-rank factors of each task", "tokens x width + tasks x task_rank (tokens + width)",
        "2303.02861", needs_task=True,
    ),
    "multitask_prompt_tuning": _prompt(
        "a shared prompt times a rank-one matrix per task", "tokens x width + tasks x rank x (tokens + width)",
        "2303.02861", needs_task=True,
    ),
    "p_tuning": _prompt(
        "embeddings before the text, out of a small network", "tokens x width + the network", "2103.10385"
    ),
    "prefix_tuning": _prompt(
        "keys and values before those of every layer", "2 tokens x layers x width of keys", "2101.00190"
    ),
    "prompt_tuning": _prompt("embeddings before the text", "tokens x width", "2104.08691"),
    "adalora": _linear(
        "W0 + P diag(E) Q, with ranks moved to where they count most", "r (d_in + d_out + 1) per matrix at the start",
        "2303.10512", size="init_r", smallest=2, follows={"target_r": 2 / 3}, quantised=True,  # one rank cannot move
    ),
    "adamss": _linear(
        "low-rank changes inside clusters of the singular vectors", "subspace_rank (d_out + cluster) per cluster",
        "https://huggingface.co/docs/peft",
    ),
    "boft": _linear("butterfly products of orthogonal blocks, times W0", "butterfly blocks + d_out", "2311.06243"),
    "c3a": _linear(
        "W0 + blocks of circulant matrices", "d_in d_out / block_size per matrix", "2407.19342", identity=False
    ),
    "deft": _linear("(1 - P relu(P)') W0 + P R", RANK, "https://huggingface.co/docs/peft", size="r"),
    "delta_lora": _lora(
        "LoRA, and W0 moves by a multiple of what B A has moved", RANK, "2309.02411", placed_as="lora"
    ),
    "delora": _linear(
        "W0 + a bounded factor of normalised rank-one matrices", "r (d_in + d_out) + 1 per matrix", "2503.18225",
        size="r",
    ),
    "fourierft": _linear(
        "W0 + the inverse Fourier transform of few coefficients", "n_frequency per matrix", "2405.03003",
        size="n_frequency", identity=False,
    ),
    "frod": _linear(
        "W0 turned by a sparse rotation in a basis that layers share", "d + sparse_rate d² per matrix",
        "https://doi.org/10.1609/aaai.v40i31.39813", defaults={"progressbar": False},
    ),
    "glora": _linear("W0 + W0 A + B, b0 + b0 D + E + W0 C", "by its five parts", "2306.07967", size="r"),
    "gralora": _linear("W0 + a low-rank change of every block of W0", RANK, "2505.20355"),
    "hira": _linear(
        "W0 + W0 * (B A), elementwise", RANK, "https://openreview.net/forum?id=TwJrTz9cRS", size="r", quantised=True
    ),
    "hra": _linear(
        "W0 times r Householder reflections", "r d_in per matrix", "2405.17484",
        size="r", smallest=2, multiple=2,  # reflections cancel in pairs before training
    ),
    "lily": _linear(
        "W0 + B A, with A of the layer and a router over B that layers share", "r d_in per matrix + shared B + routers",
        "2407.09946", size="r", merges=False,
    ),
    "loha": _linear("W0 + (B1 A1) * (B2 A2), elementwise", "2 r (d_in + d_out) per matrix", "2108.06098", size="r"),
    "lokr": _linear("W0 + a Kronecker product with a low-rank factor", "by the factors' sizes", "2309.14859"),
    "lora": _lora("W0 + (alpha / r) B A", RANK, "2106.09685", quantised=True),
    "lora_fa": _lora(
        "LoRA whose A stays as it was drawn; B follows the projected gradient", "r d_out per matrix", "2308.03303",
        quantised=True, placed_as="lora",
    ),
    "lora_plus": _lora("LoRA whose B learns faster than A", RANK, "2402.12354", quantised=True, placed_as="lora"),
    "mhr": _linear(
        "W0 + (alpha / r) A_t B_t, where every task t mixes the heads of shared A and B by its own weights",
        "skills x r (d_in + d_out) + tasks x heads x skills per matrix", "2211.03831",
        defaults={"target_modules": None}, size="r", merges=False, needs_task=True,
    ),
    "miss": _linear(
        "W0 + one small matrix repeated over blocks of columns", "r d_out per matrix", "2409.15371", size="r"
    ),
    "oft": _linear("orthogonal blocks times W0", "blocks (b² - b) / 2 per matrix", "2306.07280"),
    "osf": _linear(
        "the smaller singular values and vectors of W0; the larger ones stay", "rank (d_in + d_out + 1) per matrix",
        "2504.07097", defaults={"target_modules": None},
    ),
    "peanut": _linear("W0 + a small network of W0", RANK, "2410.01870", size="r"),
    "poly": _linear(
        "W0 + a mixture of low-rank changes, weighed per task", "skills x r (d_in + d_out) per matrix + tasks x skills",
        "2202.13914", size="r", merges=False, needs_task=True,
    ),
    "psoft": _linear("W0 with its principal subspace turned", "r (r - 1) / 2 + 2 r per matrix",
        "2505.11235", size="r",
    ),
    "pvera": _linear(
        "VeRA with a distribution over its activations", "2 r + d_out per matrix", "2512.07703", size="r",
        quantised=True,
    ),
    "randlora": _linear(
        "W0 + a sum of fixed random low-rank matrices, scaled", "min(d) / r x (min(d) + r) per matrix", "2502.00987",
        quantised=True,
    ),
    "road": _linear(
        "rotation and scale of pairs of outputs", "d_out per matrix; variants 2 and 4: 2 and 4 d_out", "2409.00119",
        quantised=True,
    ),
    "tinylora": _linear("W0 + its singular vectors mixed by a tiny vector", "u per matrix", "2602.04118", size="u"),
    "unilora": _linear(
        "LoRA whose numbers are all copies of one short vector's", "theta_d_length in all", "2506.00799",
        size="theta_d_length", identity=False,
    ),
    "vblora": _linear(
        "LoRA whose vectors are mixtures from a bank that layers share", "bank + logits", "2405.15179", identity=False
    ),
    "vera": _linear("W0 + diag(b) B diag(d) A with fixed random A, B", "r + d_out per matrix", "2310.11454", size="r"),
    "waveft": _linear(
        "W0 + the inverse wavelet transform of few coefficients", "n_frequency per matrix", "2505.12532",
        size="n_frequency",
    ),
    "xlora": Method(
        "reparameterisation", "a mixture of trained LoRA adapters, weighed per token by a small network",
        "the network", "2402.07148", merges=False,
    ),
}  # fmt: skip

WITHOUT_ADAPTER = ("full", "half", "child_tuning", "fish")
"""Methods that train the model's own weights; all others are placed by peft."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "cpt": ("cpt_token_ids",),
    "trainable_tokens": ("token_indices",),
}
"""Options without which a method has no meaning, and for which no default could be right."""

CONTINUE = "continue"
"""Not a method: the adapter that a model has trains further."""

NOT_CONTINUED: dict[str, str] = {
    "adalora": "its ranks are settled",
    "cartridge": "peft loads it frozen",
    "cpt": "peft loads it frozen",
    "delta_lora": "how it was trained is not in its file",
    "lora_fa": "how it was trained is not in its file",
    "lora_plus": "how it was trained is not in its file",
    "mpt": "its prompts are of the tasks that it was trained on",
    "p_tuning": "what is saved is what its encoder put out, without the encoder",
    "prefix_tuning": "what is saved is what its encoder put out, without the encoder",
}
"""Methods whose saved adapter cannot be trained further, with the reason."""

CACHED_PREFIX = ("cartridge", "prefix_tuning")
"""Methods whose learned keys and values come to every layer as a cache, which a layer computed twice cannot have."""

NOT_OFFERED: dict[str, str] = {
    "multitask_prompt_tuning": "mpt is the same, and knows its tasks when it is scored and saved",
    "poly": "mhr with n_splits: 1 is the same, and knows its tasks when it is scored, packed and saved",
    "xlora": "peft 0.21 writes an adapter file without the weights that it trains",
}
"""Methods that peft offers and that are refused, with the reason."""

STARTS_NOT_OFFERED: dict[str, str] = {
    "corda": "it looks at batches of the data before anything is placed, which multitune does not do",
    "eva": "it looks at batches of the data before training, which multitune does not do",
    "lora_ga": "it looks at gradients of the data before anything is placed, which multitune does not do",
    "pissa_niter": "its random decomposition comes out otherwise when the adapter is loaded; 'pissa' is exact",
}
"""Values of ``init_lora_weights``, or how they begin, that are refused, with the reason."""
