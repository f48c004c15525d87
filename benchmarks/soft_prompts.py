"""EPT against prompt tuning of as many numbers: process time of a training step; and EPT's inference, folded or not.

    python benchmarks/soft_prompts.py --out result.json

One thread, order A B B A. First it is shown that EPT starts as peft's prompt tuning, and that folding changes no logit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from multitune.models.tuners import register_tuners
from multitune.models.tuners.soft_prompt_config import EptConfig
from multitune.training.speeds import speed_up_prompts

WIDTH, LAYERS, VOCABULARY, ROWS = 256, 4, 8000, 8
VECTORS = 100
"""Of prompt tuning; the card's lengths: 100 vectors against 40, before texts of up to 256 tokens."""

SHORT = {"num_virtual_tokens": 40, "r": 20, "max_length": 256, "n_spaces": 4, "space_rank": 2, "fusion": True}
LENGTHS = (256, 128, 64)
WRITTEN = 32


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 704, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))


def prompt_tuning(vectors: int) -> Any:
    return get_peft_model(base(), PromptTuningConfig(num_virtual_tokens=vectors, task_type="CAUSAL_LM"))


def ept() -> Any:
    return get_peft_model(base(), EptConfig(task_type="CAUSAL_LM", **SHORT))


def host_of(model: Any) -> Any:
    return model.get_base_model().soft_prompt


@torch.no_grad()
def trained(model: Any) -> Any:
    """Return EPT whose every part acts, as after training."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def difference_at_the_start(ids: torch.Tensor) -> float:
    """Return the largest difference of a logit between EPT untrained and peft's prompt tuning by its vectors."""
    ours, theirs = ept().eval(), prompt_tuning(SHORT["num_virtual_tokens"]).eval()
    theirs.prompt_encoder["default"].embedding.weight.copy_(host_of(ours).vectors["default"])
    expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
    return float((ours(input_ids=ids).logits - expected).abs().max())


def difference_by_folding(model: Any, ids: torch.Tensor) -> float:
    """Return the largest difference of a logit between what is computed with gradients, and what was folded before."""
    unfolded = model(input_ids=ids).logits.detach()
    with torch.no_grad():
        model(input_ids=ids)
        return float((model(input_ids=ids).logits - unfolded).abs().max())


def step_of(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """Return what trains a model by one step of AdamW."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    speed_up_prompts(optimizer, model, 1e-2)
    mask = torch.ones_like(ids)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reading(model: Any, ids: torch.Tensor, *, folded: bool) -> Callable[[], None]:
    """Return what reads a batch once."""

    def read() -> None:
        with torch.no_grad(), nullcontext() if folded else unfolding(model):
            model(input_ids=ids)

    return read


def writing(model: Any, ids: torch.Tensor, *, folded: bool) -> Callable[[], None]:
    """Return what writes tokens behind one row."""
    told = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": 0}

    def write() -> None:
        with nullcontext() if folded else unfolding(model):
            model.generate(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), **told)

    return write


@contextmanager
def unfolding(model: Any) -> Iterator[None]:
    """Let every forward forget first what was folded."""

    def forget(*_: Any) -> None:
        host_of(model).eval()

    handle = model.get_base_model().register_forward_pre_hook(forget, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def compared(one: Callable[[], None], other: Callable[[], None], rounds: int) -> dict[str, Any]:
    """Return process time of a call of each, medians of the calls of a turn, in the order A B B A; B's as a share."""
    seconds = []
    for call in (one, other, other, one):
        call()  # warms up
        clock = [time.process_time()]
        for _ in range(rounds):
            call()
            clock.append(time.process_time())
        seconds.append(median(later - sooner for sooner, later in pairwise(clock)))
    return {
        "A": [seconds[0], seconds[3]],
        "B": [seconds[1], seconds[2]],
        "ratio": (seconds[1] + seconds[2]) / (seconds[0] + seconds[3]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_tuners()
    ids = torch.randint(VOCABULARY, (ROWS, LENGTHS[0]), generator=torch.Generator().manual_seed(2))
    asked = trained(ept())
    result: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "rows": ROWS,
        "width": WIDTH,
        "layers": LAYERS,
        "prompt_tuning": {"num_virtual_tokens": VECTORS},
        "ept": SHORT,
        "numbers": {
            name: sum(p.numel() for p in model.parameters() if p.requires_grad)
            for name, model in (("prompt_tuning", prompt_tuning(VECTORS)), ("ept", ept()))
        },
        "largest_difference_from_prompt_tuning_at_the_start": difference_at_the_start(ids),
        "largest_difference_by_folding": difference_by_folding(asked, ids),
    }
    print(json.dumps(result, indent=2), flush=True)

    def measure(what: str, one: Callable[[], None], other: Callable[[], None]) -> None:
        result[what] = compared(one, other, arguments.rounds)
        print(f"{what}: {result[what]['ratio']:.3f}", flush=True)

    for length in LENGTHS:
        models = prompt_tuning(VECTORS), ept()
        measure(f"step, texts of {length}", *(step_of(model, ids[:, :length]) for model in models))
    measure(
        f"forward, {ROWS} texts of {LENGTHS[0]}: unfolded, folded",
        reading(asked, ids, folded=False),
        reading(asked, ids, folded=True),
    )
    measure(
        f"{WRITTEN} tokens behind a text of {LENGTHS[-1]}: unfolded, folded",
        writing(asked, ids[:, : LENGTHS[-1]], folded=False),
        writing(asked, ids[:, : LENGTHS[-1]], folded=True),
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
