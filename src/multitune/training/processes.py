"""The processes of one run, as `accelerate launch` or torchrun starts them: who writes, and what all must agree on.

Rank and world size come from the launcher's environment, so that asking costs nothing; the first exchange opens the
process group through accelerate. What is exchanged here are small Python objects on CPUs. An exchange may wait for as
long as another process scores or tokenises, so it has a time limit of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch.distributed

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(days=7)
PATIENCE = timedelta(seconds=10)
"""For which a process with an error waits for the main one to end of the same."""


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return rank() == 0


def broadcast(value: Value) -> Value:
    """Return the main process's value on every process."""
    if world_size() == 1:
        return value
    import torch.distributed

    values: list[Any] = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=_group())
    return values[0]


def gather(value: Value) -> list[Value]:
    """Return every process's value, in the order of their ranks, on the main process; [] on the others."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * world_size()
    torch.distributed.gather_object(value, values if is_main() else None, dst=0, group=_group())
    return values if is_main() else []


def any_of(flag: bool) -> bool:
    """Return whether the flag is set on some process; all of them ask together."""
    if world_size() == 1:
        return flag
    import torch

    count = torch.tensor(int(flag))
    torch.distributed.all_reduce(count, group=_group())
    return bool(count)


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Let one process of every machine through before the others, which then find its files."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        any_of(False)
    yield
    if first:
        any_of(False)


def leave() -> None:
    """Close the process group when all have come here; a process that just ends may crash the others' connections."""
    if world_size() == 1:
        return
    import torch.distributed

    any_of(False)
    torch.distributed.destroy_process_group()
    _group.cache_clear()


def main_process_ends() -> bool:
    """Return, on another process that has failed, whether the main one ends now too: what is wrong is wrong there."""
    import torch.distributed

    try:
        torch.distributed.monitored_barrier(group=_group(), timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        return is_loss_of_process(error)
    return False


def is_loss_of_process(error: BaseException) -> bool:
    """Return whether an error says no more than that another process has gone away."""
    signs = ("closed by peer", "reset by peer", "Connection reset", "Broken pipe", "remote process exited")
    return world_size() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@cache
def _group() -> torch.distributed.ProcessGroup:
    """Return the group for exchanges between CPUs; made by all processes at their first exchange."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
