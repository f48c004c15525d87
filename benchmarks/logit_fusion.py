"""What fusion costs: per token against the forward passes alone, and its search against scipy's optimisers.

Forward passes: a large model and a small one with the shapes of SmolLM2-360M and -135M, and two experts, all with
random weights. They write greedily as a `LogitFusion`, and then read the same tokens one by one, each with a cache of
its own. Search: logits of random normal numbers; the same objective by its definition in NumPy, minimised for every row
by `scipy.optimize.minimize_scalar` (bounded, one expert after the other, the best of them) and by
`scipy.optimize.minimize` (SLSQP and L-BFGS-B over all coefficients, scipy's default settings). One thread; orders
A B B A; medians of process time.

    python benchmarks/logit_fusion.py --tokens 8 --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

VOCABULARY, PROMPT = 49_152, 32
SHAPES = {
    "large": {"layers": 32, "width": 960, "intermediate": 2560, "heads": 15},
    "small": {"layers": 30, "width": 576, "intermediate": 1536, "heads": 9},
}
EXPERTS = 2
BATCHES = (1, 8)
SEARCHES = ((1_000, 1), (1_000, 32), (32_000, 1), (32_000, 8), (32_000, 64), (152_000, 1))


def make_model(shape: dict[str, int], seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape["width"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"] // 3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def make_fusion() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from multitune.decoding.logit_fusion import LogitFusion
    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    models = [make_model(SHAPES["large" if seed == 0 else "small"], seed) for seed in range(2 + EXPERTS)]
    large, small, *experts = (Backbone(model, tokenizer, "causal", ModelConfig(name="random")) for model in models)
    return LogitFusion(large, small, experts)


def forward_passes(models: list[Any], sequence_BL: Any) -> None:
    """Read the prompt and then token after token with every model."""
    import torch
    from transformers import DynamicCache

    with torch.no_grad():
        for model in models:
            cache = DynamicCache(config=model.config)
            model(input_ids=sequence_BL[:, :PROMPT], past_key_values=cache, logits_to_keep=1)
            for column in range(PROMPT, sequence_BL.shape[1] - 1):
                model(input_ids=sequence_BL[:, column : column + 1], past_key_values=cache, logits_to_keep=1)


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def against_forward_passes(tokens: int) -> list[dict[str, Any]]:
    import torch

    fusion = make_fusion()
    models = [role.model for role in fusion.roles]
    found = []
    for rows in BATCHES:
        prompt = torch.randint(1, VOCABULARY, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))

        def fused(prompt: Any = prompt) -> Any:
            return fusion.generate(input_ids=prompt, max_new_tokens=tokens, do_sample=False)

        sequence = fused()  # warms up, and is what the models read alone

        def alone(sequence: Any = sequence) -> None:
            forward_passes(models, sequence)

        alone()
        order = [("fused", fused), ("alone", alone), ("alone", alone), ("fused", fused)]
        times: dict[str, list[float]] = {"fused": [], "alone": []}
        for name, work in order * 2:
            times[name].append(seconds_of(work) / tokens)
        ratio = median(times["fused"]) / median(times["alone"])
        found.append({"rows": rows, "tokens": tokens, "seconds_per_token": times, "ratio": ratio})
        print(f"{rows} rows: fused {times['fused']}, forward passes alone {times['alone']}, ratio {ratio:.3f}")
    return found


def objective(large: Any, small: Any, experts: Any) -> Callable[[Any], float]:
    """Return L(alpha) of one row by its definition."""
    import numpy as np
    from scipy.special import log_softmax

    def divergence(log_p: Any, log_q: Any) -> float:
        return float(np.exp(log_p) @ (log_p - log_q))

    log_p, log_q = log_softmax(large), log_softmax(small)
    logs = [log_softmax(one) for one in experts]
    away, back = [divergence(one, log_q) for one in logs], [divergence(log_q, one) for one in logs]

    def loss(alpha: Any) -> float:
        shift = sum(a * (one - small) for a, one in zip(alpha, experts, strict=True) if a != 0)
        fused = log_softmax(large + shift)
        x, y = divergence(fused, log_p), divergence(log_p, fused)
        return sum((x - a) ** 2 + (y - b) ** 2 for a, b in zip(away, back, strict=True))

    return loss


def bounded(loss: Callable[[Any], float]) -> float:
    """Return the least loss with one active expert."""
    from scipy.optimize import minimize_scalar

    def along(t: int) -> Callable[[float], float]:
        return lambda alpha: loss([alpha if other == t else 0.0 for other in range(EXPERTS)])

    return min(
        minimize_scalar(along(t), bounds=(0, 2), method="bounded", options={"xatol": 0.05}).fun for t in range(EXPERTS)
    )


def together(method: str) -> Callable[[Callable[[Any], float]], float]:
    """Return a method that finds the least loss over all coefficients together."""
    from scipy.optimize import minimize

    return lambda loss: float(minimize(loss, [1.0] * EXPERTS, bounds=[(0, 2)] * EXPERTS, method=method).fun)


def against_scipy(repeats: int) -> list[dict[str, Any]]:
    import torch

    from multitune.decoding.fusion_config import FusionConfig
    from multitune.decoding.fusion_search import fuse

    found = []
    for words, rows in SEARCHES:
        generator = torch.Generator().manual_seed(words)
        large, small = (3 * torch.randn(rows, words, generator=generator) for _ in range(2))
        experts = small[:, None] + torch.randn(rows, EXPERTS, words, generator=generator)
        arrays = [(large[row].numpy(), small[row].numpy(), experts[row].numpy()) for row in range(rows)]

        def per_row(method: Callable[[Any], float], arrays: Any = arrays) -> list[float]:
            return [method(objective(*one)) for one in arrays]

        def grid(config: FusionConfig, models: Any = (large, small, experts)) -> Any:
            return fuse(*models, config).loss_B

        arms: dict[str, Callable[[], Any]] = {
            "grid": lambda: grid(FusionConfig()),
            "joint": lambda: grid(FusionConfig(search="joint")),
            "bounded": lambda: per_row(bounded),
            "slsqp": lambda: per_row(together("SLSQP")),
            "l_bfgs_b": lambda: per_row(together("L-BFGS-B")),
        }
        losses = {name: [float(one) for one in work()] for name, work in arms.items()}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name in [*arms, *reversed(arms)]:
                times[name].append(seconds_of(arms[name]) / rows)
        per_token = {name: median(one) for name, one in times.items()}
        found.append(
            {
                "words": words,
                "rows": rows,
                "seconds_per_token": per_token,
                "faster": {
                    f"{ours} than {theirs}": per_token[theirs] / per_token[ours]
                    for ours in ("grid", "joint")
                    for theirs in ("bounded", "slsqp", "l_bfgs_b")
                },
                "mean_loss": {name: sum(one) / rows for name, one in losses.items()},
            }
        )
        print(json.dumps(found[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    import scipy
    import torch
    import transformers

    torch.set_num_threads(1)
    result = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "scipy": scipy.__version__},
        "load": os.getloadavg(),
        "against_scipy": against_scipy(arguments.repeats),
        "against_forward_passes": against_forward_passes(arguments.tokens),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
