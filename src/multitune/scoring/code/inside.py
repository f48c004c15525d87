"""Runs one program behind walls. This file is the program that `sandbox.run` starts; nothing here is imported by it.

From standard input it reads how far the program may go. It limits itself, gives up its rights for good, runs the
program, and tells on a pipe how that ended. It is of the standard library alone: what is not loaded cannot be misused.

The walls, outermost first: limits of the kernel (`resource`); Landlock, which lets files be read below a few folders
and written below one; a filter of system calls (seccomp), without which there is a network, other processes and their
signals; a hook on what Python itself is asked to do, which alone is left where the kernel offers no more than limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import runpy
import struct
import sys
from typing import Any

NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, CAPSET = 444, 445, 446, 126
READS = 1 << 2 | 1 << 3  # files and folders
FILE_RIGHTS = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # those that a single file can have
X86_64, X32 = 0xC000003E, 0x40000000
REFUSE, KILL, ALLOW = 0x00050000 | 1, 0x80000000, 0x7FFF0000

# fmt: off
SYSTEM_CALLS = {  # x86-64: what a program that computes has no use for
    "network": (41, 42, 49, 50),  # socket, connect, bind, listen; also the way into io_uring:
    "io_uring": (425, 426, 427),
    "processes": (56, 57, 58, 59, 322, 435),  # clone, fork, vfork, execve, execveat, clone3; threads are clones
    "signals": (62, 129, 200, 234, 297, 424, 434, 438),
    "others' memory": (101, 310, 311, 298, 321, 323),  # ptrace, process_vm_*, perf, bpf, userfaultfd
    "shared memory": (29, 64, 68, 240, 319),  # System V, message queues, memfd: not counted by the limit of memory
    "owners and times": (76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 235, 260, 261, 268, 280, 452),  # Landlock: none
    "mounts and namespaces": (155, 161, 165, 166, 272, 308, 428, 429, 430, 442),
    "limits and groups": (109, 112, 141, 160, 203, 302),
    "keys": (248, 249, 250),
}
# fmt: on

REFUSED = (
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.system", "pty.spawn", "signal.pthread_kill", "socket.bind", "socket.connect", "socket.getaddrinfo",
    "socket.gethostbyaddr", "socket.gethostbyname", "socket.sendmsg", "socket.sendto", "subprocess.Popen",
    "webbrowser.open",
)  # fmt: skip
WITHOUT_KERNEL = ("ctypes.", "gc.get_objects", "gc.get_referrers", "sys._current_frames")
"""What would lift a hook of Python; harmless where the kernel holds."""
CHANGED_PATHS = {
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1, "os.removexattr": 1,
}  # fmt: skip
"""Events whose first arguments are paths that change, with their number."""


def limit(limits: dict[str, int]) -> None:
    """Set the limits that the kernel keeps; a process without rights cannot raise them again."""
    bounds = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for which, value in bounds.items():
        # a second between SIGXCPU, which tells why, and SIGKILL, which nobody can catch
        hard = value + 1 if which == resource.RLIMIT_CPU else value
        resource.setrlimit(which, (value, hard))


def standard_input(name: str) -> int:
    """Open the file that a program reads as its standard input, and take it away; 0 where there is none."""
    if not os.path.exists(name):  # noqa: PTH110
        return 0
    place = os.open(name, os.O_RDONLY)
    os.remove(name)  # noqa: PTH107
    return place


def shut_files(libc: Any, folder: str, readable: list[str]) -> None:
    """Landlock: files below ``readable`` can be read, those below ``folder`` written too; OSError if there is none."""
    abi = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        raise OSError("no Landlock")
    handled = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    scoped = 3 if abi >= 6 else 0  # abstract sockets and signals to outside
    attributes = struct.pack("QQQ", handled, 0, scoped) if abi >= 6 else struct.pack("Q", handled)
    rules = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        raise OSError("Landlock gives no rules")
    for path, rights in [*((path, READS) for path in readable), (folder, handled & ~1)]:
        allowed = rights & handled & (-1 if os.path.isdir(path) else FILE_RIGHTS)  # noqa: PTH112
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0):
            raise OSError(f"Landlock refuses a rule for {path}")
        os.close(place)
    if libc.syscall(LANDLOCK_RESTRICT, rules, 0):
        raise OSError("Landlock does not restrict")
    os.close(rules)


def give_up_rights(libc: Any) -> None:
    """Drop all capabilities: to root, too, limits and permissions apply from here on."""
    if libc.syscall(CAPSET, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)):
        raise OSError("capabilities cannot be dropped")


def filter_calls(libc: Any) -> None:
    """Seccomp: the SYSTEM_CALLS answer "not permitted"; calls of another architecture end the program."""
    if os.uname().machine != "x86_64":
        raise OSError("no table of system calls")
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, X86_64), (answer, 0, 0, KILL)]
    code += [(load, 0, 0, 0), (at_least, 0, 1, X32), (answer, 0, 0, KILL)]
    for number in sorted(number for numbers in SYSTEM_CALLS.values() for number in numbers):
        code += [(equal, 0, 1, number), (answer, 0, 0, REFUSE)]
    code.append((answer, 0, 0, ALLOW))
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("H6xQ", len(code), ctypes.addressof(lines)))
    if libc.prctl(SECCOMP, FILTER, program, 0, 0):
        raise OSError("seccomp is not offered")


def raise_kernel_walls(folder: str, readable: list[str]) -> str:
    """Raise all walls of the kernel, for good; return why not where one is missing, else ""."""
    if not sys.platform.startswith("linux"):
        return "this is not Linux"
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError("privileges cannot be given up")
        shut_files(libc, folder, readable)
        give_up_rights(libc)
        filter_calls(libc)
    except OSError as error:
        return str(error)
    return ""


def watch(folder: str, readable: list[str], refused: tuple[str, ...]) -> list[str]:
    """Refuse by a hook what Python is asked to do and should not; return the list that tells of it."""
    refusals: list[str] = []
    places = (folder, *readable)

    def below(path: Any, roots: tuple[str, ...]) -> bool:
        if isinstance(path, int) or path is None:
            return True  # an open file, or the current folder
        full = os.path.realpath(os.fsdecode(path))
        return any(full == root or full.startswith(root.rstrip("/") + "/") for root in roots)

    def allowed(event: str, details: tuple[Any, ...]) -> bool:
        if event.startswith(refused):
            return False
        if event == "open":
            path, _, flags = details
            writes = flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            return below(path, (folder, "/dev/null") if writes else places)
        if event in ("os.listdir", "os.scandir"):
            return below(details[0], places)
        return all(below(path, (folder,)) for path in details[: CHANGED_PATHS.get(event, 0)])

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if not allowed(event, details):
            refusals.append(event if event != "open" else f"open {str(details[0])[:80]}")
            raise PermissionError(f"{event} is not permitted here")

    sys.addaudithook(hook)
    return refusals


def ending(error: BaseException | None, program: str, refusals: list[str], *, prints: bool) -> tuple[str, str]:
    """Return how a program ended, and why, out of what it raised; one whose output is compared may exit with 0."""
    if error is None or (prints and isinstance(error, SystemExit) and error.code in (None, 0)):
        return "passed", ""
    if isinstance(error, MemoryError):
        return "memory", "it asked for more memory than it may have"
    if isinstance(error, SystemExit):
        return "failed", f"it exited ({str(error.code)[:40]}) before its tests were done"
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == program:
            line = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    why = f"{type(error).__name__}{line}: {str(error)[:200]}".rstrip(": ")
    if isinstance(error, PermissionError) or refusals:
        return "refused", f"{why} ({', '.join(dict.fromkeys(refusals[:3]))})" if refusals else why
    return "failed", why


def main() -> None:
    """Read the orders, raise the walls, run the program, report."""
    orders = json.load(sys.stdin)
    report, program, folder = orders["report"], orders["program"], orders["folder"]
    readable = [path for path in orders["readable"] if os.path.exists(path)]  # noqa: PTH110
    nothing = os.open(os.devnull, os.O_RDWR)
    os.chdir(folder)
    os.dup2(standard_input(orders["stdin"]) or nothing, 0)
    if orders["prints"]:  # what is compared is standard output alone
        os.dup2(nothing, 2)
    limit(orders["limits"])
    missing = raise_kernel_walls(folder, readable)
    if missing and not orders["weak"]:
        os.write(report, json.dumps([orders["token"], "no walls", missing]).encode())
        return
    refusals = watch(folder, readable, REFUSED + (WITHOUT_KERNEL if missing else ()))
    sys.argv = [program]
    error: BaseException | None = None
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException as raised:
        error = raised
    status, why = ending(error, program, refusals, prints=orders["prints"])
    with contextlib.suppress(Exception):  # it may have closed or replaced it
        sys.stdout.flush()
    os.write(report, json.dumps([orders["token"], status, why]).encode())
    os._exit(0)  # no farewell of the program: it has had its turn


if __name__ == "__main__":
    main()
