"""Memory and time of learning coefficients, streamed and through the composition, for growing numbers of vectors.

    python benchmarks/learned_merging.py --vectors 2 8 16 --out result.json

A BERT of MiniLM's shape (22.6 M parameters, float32) and task vectors of random numbers in bfloat16, memory-mapped from
files. Every pair of route and number of vectors is a process of its own; steps after the first are timed. Anonymous
memory is what the process cannot give back to the page cache. All pairs of one number of vectors must find the same
gradient.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS, ROWS, TOKENS = 4, 16, 32


def encoder():
    """Return the model with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=4)).eval()


def write_vectors(folder: Path, count: int) -> None:
    """Write task vectors of the model without its head."""
    import torch
    from safetensors.torch import save_file

    shapes = {name: p.shape for name, p in encoder().named_parameters() if not name.startswith("classifier")}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        deltas = {name: (1e-3 * torch.randn(shape, generator=generator)).bfloat16() for name, shape in shapes.items()}
        save_file(deltas, folder / f"{number}.safetensors")


def anonymous_bytes() -> int:
    """Return the process's anonymous memory now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(route: str, count: int, folder: Path) -> dict[str, object]:
    """Take some steps of one route; return seconds per step, peak memory and the sum of the first gradient's parts."""
    import torch

    from multitune.weights.learned.composition import composed
    from multitune.weights.learned.objectives import cross_entropy
    from multitune.weights.learned.routes import routed
    from multitune.weights.learned.vectors import vector_of_file

    torch.set_num_threads(1)
    model = encoder()
    composition = composed(model, [vector_of_file(folder / f"{number}.safetensors") for number in range(count)])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS, TOKENS), generator=generator)
    labels = torch.randint(4, (ROWS,), generator=generator)
    peak, running = [anonymous_bytes()], True

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], anonymous_bytes())
            time.sleep(0.005)

    before = anonymous_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, first = [], None
    with routed(route, model, composition) as composed_model:
        lam_NC = composition.start()
        for step in range(STEPS):
            clock = time.process_time()
            _, slope_NC = composed_model.gradient(lam_NC, [lambda f: cross_entropy(f(input_ids=ids).logits, labels)])
            lam_NC = lam_NC - 0.1 * slope_NC.sign()
            seconds.append(time.process_time() - clock)
            first = slope_NC if step == 0 else first
    running = False
    watcher.join()
    return {
        "route": route,
        "vectors": count,
        "seconds": sorted(seconds[1:])[len(seconds[1:]) // 2],
        "peak_bytes": peak[0] - before,
        "gradient": first.flatten().tolist(),
    }


def main() -> None:
    """Run all pairs, check that gradients agree, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        route, count, folder = arguments.one
        print(json.dumps(measure(route, int(count), Path(folder))))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder), max(arguments.vectors))
        for count in arguments.vectors:
            for route in ("streamed", "autograd"):
                command = [sys.executable, __file__, "--one", route, str(count), folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
            one, other = (result.pop("gradient") for result in results[-2:])
            apart = max(abs(a - b) for a, b in zip(one, other, strict=True)) / max(map(abs, other))
            results[-2]["apart"] = results[-1]["apart"] = apart
            assert apart < 1e-4, apart
    for result in results:
        print(
            f"{result['vectors']:3} vectors, {result['route']:9} {result['seconds']:6.2f} s per step,"
            f" {result['peak_bytes'] / 2**20:6.0f} MiB beyond the loaded model; gradients apart {result['apart']:.1e}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
