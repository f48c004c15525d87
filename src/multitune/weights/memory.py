"""How much memory a piece of work takes: anonymous pages, which no file backs, sampled while it runs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

EVERY_SECONDS = 0.02


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs; 0 where the system does not tell (outside Linux)."""
    try:
        with Path("/proc/self/status").open(encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class PeakMemory:
    """Watches the anonymous memory of this process inside a ``with`` block.

    Attributes:
        bytes: the largest seen.
    """

    def __enter__(self) -> PeakMemory:
        self.bytes = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.bytes = max(self.bytes, anonymous_bytes())
