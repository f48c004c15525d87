"""Runs programs that nobody has read, each in a process of its own behind walls, and says how it ended.

What holds and what does not is told in docs/code-generation.md; what raises the walls is `inside`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from multitune.errors import MultituneError

Status = Literal["passed", "failed", "timed out", "memory", "refused"]

INSIDE = Path(__file__).with_name("inside.py")
READABLE = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/urandom")
REPORT = 4096  # bytes that a report may have
STDIN = "stdin.txt"  # gone before the program begins


@dataclass(frozen=True)
class Limits:
    """How far one program may go.

    Attributes:
        seconds: on the wall, its start included; more than cpu_seconds, since a busy machine lets programs wait.
        cpu_seconds: of computing.
        memory: bytes of address space.
        file: bytes of any one file that it writes.
        output: bytes that it may print.
        weak: whether it is run where the kernel offers no walls, behind Python's own alone.
    """

    seconds: float = 20.0
    cpu_seconds: int = 5
    memory: int = 1 << 30
    file: int = 1 << 24
    output: int = 1 << 20
    weak: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: passed: it came to its end; failed: it raised, or left before; timed out; memory: it wanted more than it
            may have; refused: it tried what it may not do.
        why: one line for people; "" when it passed.
        output: what it printed, cut.
    """

    status: Status
    why: str = ""
    output: str = ""


@dataclass(frozen=True)
class Trial:
    """A program, and what it is to do.

    Attributes:
        program: its text.
        stdin: what it reads from standard input; None: nothing.
        expected: what it has to print on standard output; None: whatever it likes.
    """

    program: str
    stdin: str | None = None
    expected: str | None = None


def run(trial: Trial | str, limits: Limits | None = None) -> Outcome:
    """Run a program to its end, and say whether it got there, and printed what it should.

    It passes only by coming to its last line: one that exits before, with 0 too, has failed, unless what it printed is
    compared. The report of that carries a token that the program is not told.

    Raises:
        MultituneError: this machine offers no walls, and ``weak`` is not set.
    """
    limits, trial = limits or Limits(), Trial(trial) if isinstance(trial, str) else trial
    if os.name != "posix":
        raise _no_walls("this is no POSIX system")
    with tempfile.TemporaryDirectory(prefix="multitune-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        source = folder / "program.py"
        source.write_text(trial.program, encoding="utf-8", errors="replace")
        if trial.stdin is not None:
            (folder / STDIN).write_text(trial.stdin, encoding="utf-8", errors="replace")
        token = secrets.token_hex(16)
        reading, writing = os.pipe()
        process = _start(folder, writing)
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as report:
                _send(process, source, limits, token, writing, prints=trial.expected is not None)
                ended = _follow(process, report, limits)
        finally:
            _end(process)
    told, output, early = ended
    text = output.decode(errors="replace")[:2000]
    if early is not None:
        return Outcome(early.status, early.why, text)
    outcome = _outcome(told, token, process.returncode, limits, text)
    if outcome.status == "passed" and trial.expected is not None and not same_output(output, trial.expected):
        return Outcome("failed", f"it printed {_short(text)} instead of {_short(trial.expected)}", text)
    return outcome


def same_output(printed: bytes | bytearray, expected: str) -> bool:
    """Return whether lines are the same but for white space around words, and numbers but for rounding (1e-5)."""
    lines = [
        [line.split() for line in text.strip().splitlines()] for text in (printed.decode(errors="replace"), expected)
    ]
    return lines[0] == lines[1] or (
        [len(line) for line in lines[0]] == [len(line) for line in lines[1]]
        and all(_close(*words) for pair in zip(*lines, strict=True) for words in zip(*pair, strict=True))
    )


def run_all(
    trials: Sequence[Trial | str],
    limits: Limits | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run programs side by side; outcomes in their order. Trials that are the same are run once.

    Args:
        workers: at most so many at a time; None: as many as there are cores.
        progress: called with (programs done, programs in all).

    Raises:
        MultituneError: as `run`.
    """
    different = list(dict.fromkeys(trials))
    outcomes: dict[Trial | str, Outcome] = {}
    # Threads only wait here: the programs are processes, started without forking this one's state.
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        running = {pool.submit(run, trial, limits): trial for trial in different}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                outcomes[running[future]] = future.result()
                if progress is not None:
                    progress(done, len(different))
        finally:
            pool.shutdown(cancel_futures=True)
    return [outcomes[trial] for trial in trials]


def _close(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    with suppress(ValueError):
        return math.isclose(float(printed), float(expected), rel_tol=1e-5, abs_tol=1e-8)
    return False


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _start(folder: Path, report: int) -> subprocess.Popen[bytes]:
    """Start `inside` in a group of its own, in an empty folder, with nothing of this process's environment.

    Not -I but its parts: isolated, Python would ignore PYTHONHASHSEED too, and sets of words would be in another order
    at every run.
    """
    environment = {
        "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-s", "-P", "-B", str(INSIDE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment,
        pass_fds=(report,),
        start_new_session=True,
    )


def _send(
    process: subprocess.Popen[bytes], source: Path, limits: Limits, token: str, report: int, *, prints: bool
) -> None:
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    orders = {
        "program": str(source), "folder": str(source.parent), "token": token, "report": report, "weak": limits.weak,
        "stdin": STDIN, "prints": prints,
        "limits": asdict(limits), "readable": [*(os.path.realpath(one) for one in prefixes), *READABLE],
    }  # fmt: skip
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died at once; how, its exit code says
        process.stdin.write(json.dumps(orders).encode())
        process.stdin.close()


def _follow(
    process: subprocess.Popen[bytes], report: IO[bytes], limits: Limits
) -> tuple[bytes, bytearray, Outcome | None]:
    """Read report and output until both end, or the program has gone too far; then also how."""
    end = time.monotonic() + limits.seconds
    told, output = bytearray(), bytearray()
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(report, selectors.EVENT_READ, told)
        while selector.get_map():
            left = end - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                return bytes(told), output, Outcome("timed out", f"it ran for more than {limits.seconds:g} seconds")
            for key, _ in ready:
                read = os.read(key.fd, 65536)
                if not read:
                    selector.unregister(key.fileobj)
                key.data.extend(read)
            if len(output) > limits.output or len(told) > REPORT:
                return bytes(told), output, Outcome("failed", f"it wrote more than {limits.output:,} bytes")
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return bytes(told), output, Outcome("timed out", f"it ran for more than {limits.seconds:g} seconds")
    return bytes(told), output, None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and what it may have started, and forget it."""
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _outcome(told: bytes, token: str, code: int, limits: Limits, output: str) -> Outcome:
    found: Any = None
    with suppress(ValueError):  # no report: it has not come to its end
        found = json.loads(told)
    if isinstance(found, list) and len(found) == 3 and found[0] == token:
        if found[1] == "no walls":
            raise _no_walls(found[2])
        return Outcome(found[1], found[2], output)
    if code == -signal.SIGXCPU:
        return Outcome("timed out", f"it computed for more than {limits.cpu_seconds} seconds", output)
    if code == -signal.SIGKILL:
        return Outcome("memory", "the system ended it, as it does where memory or its time are used up", output)
    if code == -signal.SIGSYS:
        return Outcome("refused", "it made a system call of another architecture", output)
    if code < 0:
        return Outcome("failed", f"it was ended by {signal.Signals(-code).name}", output)
    return Outcome("failed", f"it left with {code} before its tests were done", output)


def _no_walls(why: str) -> MultituneError:
    return MultituneError(
        f"Programs cannot be shut in here: {why}.",
        "running code",
        "Use Linux 5.13 or newer on x86-64, or, inside a machine or container that may be lost, --weak-walls.",
    )
