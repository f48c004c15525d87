"""Ctrl-C and a cluster's SIGTERM finish the step and the checkpoint instead of losing them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training stopped on request after writing a checkpoint; the same command goes on from there.

    Args:
        step: the optimiser step that the checkpoint holds.
        checkpoint: its folder.
    """

    def __init__(self, step: int, checkpoint: Path | None = None) -> None:
        super().__init__(f"Interrupted after step {step} of a training; its checkpoint is whole.")
        self.step, self.checkpoint = step, checkpoint


class StopRequest:
    """Whether someone asked to stop."""

    requested = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one stops at once, with Python's own handling.

    Outside the main thread signals cannot be handled and the request stays False.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        request.requested = True
        for n, handler in previous.items():
            signal.signal(n, handler)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
