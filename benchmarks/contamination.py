"""Throughput and memory of the contamination scan.

    python benchmarks/contamination.py [--megabytes 200] [--items 100000]

Text of words drawn by Zipf's law from 50,000 made-up ones, against items of 30 to 60 such words; 1 % of the items are
planted. One process, process time of the scan alone, with that of hashing the items told apart; memory is the
process's peak.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np

from multitune.scoring.in_context.contamination import item_of, matches

WORDS = 50_000
CHUNK = 1 << 20


def main() -> None:
    """Print seconds, megabytes per second and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--items", type=int, default=100_000)
    sizes = parser.parse_args()
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(generator.choice(letters, generator.integers(2, 11))) for _ in range(WORDS)])
    share = 1 / np.arange(1, WORDS + 1)
    below = np.cumsum(share) / share.sum()

    def text(count: int) -> str:
        return " ".join(words[np.searchsorted(below, generator.random(count))])

    texts = [text(int(count)) for count in generator.integers(30, 61, sizes.items)]
    items = {"items": [item_of(str(i), {"text": one}) for i, one in enumerate(texts)]}
    planted = range(0, sizes.items, 100)
    pieces = [text(CHUNK // 6) for _ in range(8)]  # said again and again: making text costs more than reading it
    generated = 0

    def documents() -> Iterator[tuple[str, str]]:
        nonlocal generated
        at = iter(planted)
        while generated < sizes.megabytes << 20:
            piece = (
                pieces[generated % len(pieces)] + " " + " . ".join(texts[i] for _, i in zip(range(8), at, strict=False))
            )
            generated += len(piece)
            yield f"at {generated}", piece

    start = time.process_time()
    matches(items, [])
    hashing = time.process_time() - start
    start = time.process_time()
    found = matches(items, documents())["items"]
    seconds = time.process_time() - start - hashing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{generated / 2**20:.0f} MiB against {sizes.items:,} items")
    print(f"{hashing:.1f} s to hash the items, {seconds:.1f} s to scan")
    print(f"{generated / 2**20 / seconds:.1f} MiB/s; peak memory {peak:.0f} MiB")
    print(f"found {len(found):,} items; planted {len([*planted]):,}, all of them: {set(planted) <= set(found)}")


if __name__ == "__main__":
    main()
