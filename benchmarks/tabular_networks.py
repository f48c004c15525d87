"""Rows per second of training MultiTab-Net, against the same network written plainly, and how time grows.

    python benchmarks/tabular_networks.py --out result.json --plot growth.svg

The plain network loops over features and targets in Python, attends from every token, and is fed row by row through a
DataLoader. All arms start from the same weights; their outputs and gradients are shown to be equal first. Every arm
takes the same optimiser steps on the same rows, in the order A B C C B A, one thread; the clock is process time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from multitune.tabular.multitab_network import MultiTabNetwork, NetworkShape
from multitune.tabular.network_layers import NetworkTarget
from multitune.tabular.network_training import Place, Rows, TargetLosses, TrainingSettings, train_network

NUMERIC, CATEGORICAL, LEVELS = 60, 15, 20  # as AliExpress: 75 features, two binary targets
TARGETS = (NetworkTarget("binary"), NetworkTarget("binary"))
SHAPE = NetworkShape(embed_dim=8, heads=4, ff_dim=256, tower=(64,))
BATCH, LEARNING_RATE = 2048, 1e-3
KINDS = ("plain", "every token", "multitune")


class PlainNetwork(nn.Module):
    """The network of an estimator, term by term: one layer per feature and target, loops in Python."""

    def __init__(self, twin: MultiTabNetwork, targets: int) -> None:
        super().__init__()
        width, tokeniser = twin.shape.embed_dim, twin.tokeniser
        numeric, codes = len(tokeniser.weight_Ne), len(tokeniser.offset_C)
        self.numeric = nn.ModuleList(nn.Linear(1, width) for _ in range(numeric))
        self.tables = nn.ModuleList(nn.Embedding(LEVELS, width) for _ in range(codes))
        self.tasks = nn.ModuleList(nn.Linear(1, width) for _ in range(targets))
        sizes = (width, twin.shape.heads, twin.shape.ff_dim, 0.0, nn.functional.gelu)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True) for _ in twin.over_tokens
        )
        hidden = twin.shape.tower[0]
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(targets)
        )
        self.blocked_SS = None if twin.allowed_SS is None else ~twin.allowed_SS
        self.copy(twin)

    @torch.no_grad()
    def copy(self, twin: MultiTabNetwork) -> None:
        """Take over the weights of the estimator's network."""
        for j, feature in enumerate(self.numeric):
            feature.weight.copy_(twin.tokeniser.weight_Ne[j, :, None])
            feature.bias.copy_(twin.tokeniser.bias_Ne[j])
        for j, table in enumerate(self.tables):
            table.weight.copy_(twin.tokeniser.table.weight[j * LEVELS : (j + 1) * LEVELS])
        for t, task in enumerate(self.tasks):
            task.weight.copy_(twin.task_weight_Te[t, :, None])
            task.bias.copy_(twin.task_bias_Te[t])
            for place, stack in ((0, twin.towers.hidden[0]), (2, twin.towers.last[0])):
                self.towers[t][place].weight.copy_(stack.weight[t].T)
                self.towers[t][place].bias.copy_(stack.bias[t])
        for layer, ours in zip(self.layers, twin.over_tokens, strict=True):
            layer.self_attn.in_proj_weight.copy_(ours.qkv.weight)
            layer.self_attn.in_proj_bias.copy_(ours.qkv.bias)
            pairs = [(layer.self_attn.out_proj, ours.out), (layer.norm1, ours.norm1), (layer.norm2, ours.norm2)]
            pairs += [(layer.linear1, ours.feed_forward[0]), (layer.linear2, ours.feed_forward[3])]
            for mine, theirs in pairs:
                mine.load_state_dict(theirs.state_dict())

    def forward(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        one = torch.ones(len(numeric_BN), 1)
        tokens = [task(one) for task in self.tasks]
        tokens += [feature(numeric_BN[:, j : j + 1]) for j, feature in enumerate(self.numeric)]
        tokens += [table(code_BC[:, j].long()) for j, table in enumerate(self.tables)]
        h_BSe = torch.stack(tokens, dim=1)
        for layer in self.layers:
            h_BSe = layer(h_BSe, src_mask=self.blocked_SS)
        return torch.cat([tower(h_BSe[:, t]) for t, tower in enumerate(self.towers)], dim=1)


class EveryToken(MultiTabNetwork):
    """The estimator's network, made to compute the last layer for tokens that nobody reads."""

    def _encode(self, h_BSe: Tensor, context: Any, seen: Any) -> Tensor:
        for layer in self.over_tokens:
            h_BSe = layer(h_BSe, self.allowed_SS)
        return h_BSe


def make_network(
    kind: str, blocks: int, numeric: int = NUMERIC, targets: Sequence[NetworkTarget] = TARGETS
) -> nn.Module:
    torch.manual_seed(0)
    shape = replace(SHAPE, blocks=blocks)
    codes = [LEVELS] * (CATEGORICAL if numeric == NUMERIC else numeric // 4)
    network = (EveryToken if kind == "every token" else MultiTabNetwork)(numeric, codes, targets, shape)
    return PlainNetwork(network, len(targets)) if kind == "plain" else network


def make_rows(rows: int, numeric: int = NUMERIC, targets: int = 2) -> Rows:
    generator = torch.Generator().manual_seed(0)
    categorical = CATEGORICAL if numeric == NUMERIC else numeric // 4
    x = torch.randn(rows, numeric, generator=generator)
    codes = torch.randint(LEVELS, (rows, categorical), generator=generator, dtype=torch.int32)
    labels = (x[:, :1] + torch.randn(rows, targets, generator=generator) > 0).float()
    return Rows(x, codes, labels)


def largest_differences(blocks: int) -> dict[str, float]:
    """Return how far outputs and gradients of the three networks lie apart, relative to the largest of each."""
    rows, found = make_rows(256), {}
    for kind in ("plain", "every token", "multitune"):
        network = make_network(kind, blocks)
        outputs = network(rows.numeric, rows.codes)
        losses, counts = TargetLosses(TARGETS)(outputs, rows.labels, None)
        (losses / counts).sum().backward()
        features = network.numeric if kind == "plain" else network.tokeniser
        if kind == "plain":
            gradient = torch.stack([feature.weight.grad[:, 0] for feature in features])
        else:
            gradient = features.weight_Ne.grad
        found[kind] = (outputs.detach(), gradient)
    output, gradient = found["plain"]
    return {
        f"{what}, {kind}": float((found[kind][place] - mine).abs().max() / mine.abs().max())
        for kind in ("every token", "multitune")
        for place, (what, mine) in enumerate((("outputs", output), ("gradients", gradient)))
    }


def settings(epochs: int = 1) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, batch_size=BATCH, learning_rate=LEARNING_RATE)


def train_plainly(network: nn.Module, rows: Rows) -> None:
    """One epoch as it is usually written: a DataLoader that collates rows one by one, targets in a loop."""
    assert rows.labels is not None
    loader = DataLoader(TensorDataset(rows.numeric, rows.codes, rows.labels), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-5)
    for numeric, codes, labels in loader:
        outputs = network(numeric, codes)
        loss = torch.zeros(())
        for t in range(labels.shape[1]):
            loss = loss + nn.functional.binary_cross_entropy_with_logits(outputs[:, t], labels[:, t])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows_per_second(kind: str, blocks: int, rows: Rows) -> float:
    """Return the rows that an arm trains on per second of process time, after a first step that is not counted."""
    network, place = make_network(kind, blocks), Place(torch.device("cpu"))
    for timed in (rows.take(slice(0, BATCH)), rows):
        started = time.process_time()
        if kind == "plain":
            train_plainly(network, timed)
        else:
            train_network(network, TARGETS, timed, settings(), place, seed=0)
    return len(rows) / (time.process_time() - started)


def compare(blocks: int, rows: Rows) -> dict[str, Any]:
    """Return the speeds of all arms, once their outputs and gradients are equal."""
    differences = largest_differences(blocks)
    if max(differences.values()) > 1e-4:
        raise SystemExit(f"The networks are not the same, so no times are told: {differences}")
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in (*KINDS, *reversed(KINDS)):
        speeds[kind].append(rows_per_second(kind, blocks, rows))
        print(f"{blocks} blocks, {kind}: {speeds[kind][-1]:.0f} rows per process second", flush=True)
    mean = {kind: len(found) / sum(1 / speed for speed in found) for kind, found in speeds.items()}
    times = {kind: mean[kind] / mean["plain"] for kind in KINDS}
    print(json.dumps(times), flush=True)
    return {"relative_differences": differences, "rows_per_process_second": speeds, "times_plain": times}


def seconds_of_epoch(rows: int, numeric: int, targets: int) -> float:
    """Return the process seconds of one epoch of the estimator's network."""
    kinds = [NetworkTarget("binary")] * targets
    network, table = make_network("multitune", 1, numeric, kinds), make_rows(rows, numeric, targets)
    place = Place(torch.device("cpu"))
    train_network(network, kinds, table.take(slice(0, BATCH)), settings(), place, seed=0)
    started = time.process_time()
    train_network(network, kinds, table, settings(), place, seed=0)
    return time.process_time() - started


GROWTH = {
    "rows (75 features, 2 targets)": [(n, (n, NUMERIC, 2)) for n in (10_000, 100_000, 1_000_000)],
    "features (20,000 rows, 2 targets)": [(d * 5 // 4, (20_000, d, 2)) for d in (12, 24, 48, 96, 192)],
    "targets (20,000 rows, 75 features)": [(t, (20_000, NUMERIC, t)) for t in (2, 8, 32, 128)],
}


def plot(growth: dict[str, list[list[float]]]) -> str:
    """Return the growth as an SVG: seconds of an epoch, both axes logarithmic, a panel for each table."""
    width, height, margin = 300, 240, 50
    parts = []
    for panel, (title, points) in enumerate(growth.items()):
        logs = [[math.log10(value) for value in point] for point in points]
        low = [math.floor(min(log[axis] for log in logs)) for axis in (0, 1)]
        high = [math.ceil(max(log[axis] for log in logs)) for axis in (0, 1)]
        left = panel * (width + margin) + margin

        def at(log: list[float], left: int = left, low: list[int] = low, high: list[int] = high) -> tuple[float, float]:
            x = left + width * (log[0] - low[0]) / (high[0] - low[0])
            return x, margin + height - height * (log[1] - low[1]) / (high[1] - low[1])

        parts.append(f'<rect x="{left}" y="{margin}" width="{width}" height="{height}" fill="none" stroke="gray"/>')
        parts.append(f'<text x="{left}" y="{margin - 12}">{title}</text>')
        for tick in range(low[0], high[0] + 1):
            x, _ = at([tick, low[1]])
            parts.append(f'<text x="{x}" y="{margin + height + 18}" text-anchor="middle">{10**tick:,}</text>')
        for tick in range(low[1], high[1] + 1):
            _, y = at([low[0], tick])
            parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{10.0**tick:g} s</text>')
        places = [at(log) for log in logs]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="teal" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="teal"/>' for x, y in places]
    full = len(growth) * (width + margin) + margin
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {height + 2 * margin}" font-size="12"'
    return "\n".join([f'{head} font-family="sans-serif" fill="gray">', *parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5 * BATCH, help="rows of the comparison")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--plot", type=Path, help="write the growth as SVG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compared = {f"{blocks} block{'s'[: blocks - 1]}": compare(blocks, make_rows(options.rows)) for blocks in (1, 2)}
    growth: dict[str, list[list[float]]] = {}
    for title, points in GROWTH.items() if options.plot else ():
        growth[title] = []
        for size, arguments in points:
            growth[title].append([size, seconds_of_epoch(*arguments)])
            print(f"{title}: {size}: {growth[title][-1][1]:.2f} process seconds an epoch", flush=True)
    result = {
        "command": "python benchmarks/tabular_networks.py",
        "load_at_end": os.getloadavg()[0],
        "compared": compared,
        "seconds_of_an_epoch": growth,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(plot(growth))


if __name__ == "__main__":
    main()
