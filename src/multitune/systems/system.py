"""What the house knows of a published system: its card, and, once it stands, its account and its reproduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multitune.systems.claims import Claim, Metrics

Run = Callable[[Mapping[str, Any], int, Path], Metrics]
"""Runs one arm with one seed: (the arm's settings, seed, a folder to work in) -> metrics."""


@dataclass(frozen=True)
class Arm:
    """One way of doing it, compared with the others on the same seeds.

    Attributes:
        name: as in tables.
        told: what it is, in a few words.
        settings: everything that tells this arm from the others, as JSON knows it; part of the fingerprint.
    """

    name: str
    told: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """A reproduction at one size.

    Attributes:
        told: what is trained on what, and what it takes.
        arms: in the order in which they run.
        claims: in the order in which they are told.
        run: runs one arm with one seed.
        measures: what the metrics are, one sentence each.
        seeds: so many are run when nobody says otherwise.
        needs_gpu: refused on a machine without one.
    """

    told: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    run: Run
    measures: tuple[str, ...] = ()
    seeds: int = 5
    needs_gpu: bool = False


@dataclass(frozen=True)
class Account:
    """What stands of a system.

    Attributes:
        published: what the paper claims, one sentence each.
        faithful: what is done as published.
        deviates: what is done otherwise, and why.
        found: how the committed numbers are to be read; no numbers of its own.
        used: how a recipe asks for it, in YAML, or a program, in Python.
        used_in: which of the two.
        scales: the reproduction by size: "small", and "full" where there is one.
        version: raised when the same settings would give other metrics, so that kept ones are not taken for new ones.
    """

    published: tuple[str, ...]
    faithful: tuple[str, ...]
    deviates: tuple[str, ...]
    used: str
    scales: Mapping[str, Scale]
    found: tuple[str, ...] = ()
    version: int = 1
    used_in: Literal["yaml", "python"] = "yaml"


@dataclass(frozen=True)
class System:
    """One published method.

    Attributes:
        number: its place in the gallery.
        name: what people call it; no two are alike.
        title: of the paper.
        source: arXiv number, venue, year.
        claim: what it claims to be good for, one sentence.
        room: the room of the house that holds, or will hold, the method.
        account: None as long as it is to come.
    """

    number: int
    name: str
    title: str
    source: str
    claim: str
    room: str
    account: Account | None = None

    @property
    def slug(self) -> str:
        """Number and name as a file name: "20-mftcoder"."""
        letters = "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())
        return f"{self.number:02d}-{'-'.join(part for part in letters.split('-') if part)}"
