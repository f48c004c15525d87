"""Our model under lm-evaluation-harness against the harness's own, of the same weights, on the same requests.

    python benchmarks/harness_scoring.py [--rounds 3] [--questions 32]

The embedded base. Requests are those of a task with four choices: without demonstrations, and behind eight of them that
all questions share, or that every question has for its own. HFLM of lm-eval 0.4.13 takes batches of 16, near the
fastest of 1, 4, 16 and 64 here; ours takes batches of 4096 tokens. One thread, process time, A B B A in every round.
Likelihoods of both sides differ by less than 1e-3 nats, or it stops.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from choice_scoring import seconds

BATCH = 16


def requests(kind: str, questions: int, seed: int = 0) -> list[Any]:
    """Return (context, continuation) requests of four choices a question."""
    draw = random.Random(seed)
    words = ("red", "green", "blue", "round", "square", "small", "large", "old", "new", "fast", "slow", "warm", "cold")

    def solved() -> str:
        return f"Which word comes last: {' '.join(draw.sample(words, 8))}?\nAnswer: {draw.choice(words)}\n\n"

    shared = "".join(solved() for _ in range(8))
    found = []
    for _ in range(questions):
        before = {"none": "", "shared": shared, "own": "".join(solved() for _ in range(8))}[kind]
        context = before + f"Which word comes last: {' '.join(draw.sample(words, 8))}?\nAnswer:"
        found += [SimpleNamespace(args=(context, f" {word}"), task_name="words") for word in draw.sample(words, 4)]
    return found


def main() -> None:
    """Print questions per second of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=32)
    words = parser.parse_args()
    torch.set_num_threads(1)
    from lm_eval.models.huggingface import HFLM

    from multitune.models.config import ModelConfig
    from multitune.models.loading import load_backbone, save_backbone
    from multitune.scoring.harness import HarnessModel

    backbone = load_backbone(ModelConfig(name="tiny"), [])
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(backbone, Path(folder) / "tiny", merged=False)
        theirs = HFLM(pretrained=str(Path(folder) / "tiny"), device="cpu", batch_size=BATCH)
    ours = HarnessModel(backbone)
    print(f"{'demonstrations':16} {'ours/s':>8} {'HFLM/s':>8} {'ratio':>6}   range over rounds   largest difference")
    for kind in ("none", "shared", "own"):
        asked = requests(kind, words.questions)
        both = [[log_p for log_p, _ in side.loglikelihood(asked, disable_tqdm=True)] for side in (ours, theirs)]
        difference = max(abs(a - b) for a, b in zip(*both, strict=True))
        assert difference < 1e-3, difference

        def of(side: Any, asked: list[Any] = asked) -> Any:
            return lambda: side.loglikelihood(asked, disable_tqdm=True)

        rows = [
            (seconds(of(ours)), seconds(of(theirs)), seconds(of(theirs)), seconds(of(ours)))
            for _ in range(words.rounds)
        ]
        fast = [(first + last) / 2 for first, _, _, last in rows]
        slow = [(second + third) / 2 for _, second, third, _ in rows]
        ratios = [b / a for a, b in zip(fast, slow, strict=True)]
        speeds = [words.questions / statistics.median(side) for side in (fast, slow)]
        print(
            f"{kind:16} {speeds[0]:8.1f} {speeds[1]:8.1f} {statistics.median(ratios):6.2f}"
            f"   {min(ratios):.2f} to {max(ratios):.2f}        {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
