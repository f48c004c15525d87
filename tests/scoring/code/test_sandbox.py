"""Programs behind walls: each tries one way out, and none gets anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from multitune.errors import MultituneError
from multitune.scoring.code.sandbox import Limits, Trial, run, run_all, same_output
from tests.scoring.code.conftest import needs_walls

pytestmark = needs_walls

FORGED = """
import os
for place in range(3, 64):
    try:
        os.write(place, b'["", "passed", ""]')
    except OSError:
        pass
os._exit(0)
"""

LIMITS = Limits(cpu_seconds=1, memory=1 << 28, file=1 << 20, output=1 << 16)


@pytest.mark.parametrize(
    ("program", "status", "why"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("x = 1\nassert x == 2, 'two'", "failed", "AssertionError in line 2: two"),
        ("def (", "failed", "SyntaxError"),
        ("def f(): f()\nf()", "failed", "RecursionError"),
        ("while True: pass", "timed out", "it "),
        ("x = bytearray(1 << 34)", "memory", "more memory"),
        ("x = []\nwhile True: x.append('a' * 1_000_000)", "memory", "more memory"),
        ("import os\nwhile True: os.fork()", "refused", "os.fork"),
        ("import os\nos.system('true')", "refused", "os.system"),
        ("import subprocess\nsubprocess.run(['true'])", "refused", "subprocess.Popen"),
        ("import os\nos.kill(os.getppid(), 9)", "refused", "os.kill"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "refused", "socket."),
        ("import socket\nsocket.socket()", "refused", "not permitted"),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')", "refused", "socket."),
        ("import os\nopen(f'/proc/{os.getppid()}/environ').read()", "refused", "environ"),
        ("open('/etc/passwd').read()", "refused", "/etc/passwd"),
        ("import os\nos.listdir('/')", "refused", "os.listdir"),
        ("import sys\nsys.exit(0)\nassert False", "failed", "it exited (0) before its tests were done"),
        ("raise SystemExit", "failed", "it exited"),
        ("import os\nos._exit(0)\nassert False", "failed", "it left with 0 before"),
        (FORGED, "failed", "it left with 0"),
        ("import signal\nsignal.raise_signal(9)", "refused", "not permitted"),
        ("while True: print('x' * 1000)", "failed", "it wrote more than 65,536 bytes"),
        ("with open('a', 'wb') as file:\n  while True: file.write(bytes(10**6))", "failed", "File too large"),
        ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "failed", "maximum limit"),
        ("import ctypes\nctypes.string_at(0)", "failed", "SIGSEGV"),
    ],
)
def test_how_a_program_ends(program, status, why):
    outcome = run(program, LIMITS)
    assert (outcome.status, why in outcome.why) == (status, True), outcome


@pytest.mark.parametrize(
    "call", ["fork()", "kill(os.getppid(), 0)", "socket(2, 1, 0)", "chmod(b'{file}', 0)", "setsid()"]
)
def test_the_kernel_refuses_what_python_is_not_asked(call, tmp_path):
    (tmp_path / "file").write_text("x")
    call = call.replace("{file}", str(tmp_path / "file"))
    program = f"import ctypes, os\nassert ctypes.CDLL(None).{call} == -1"
    assert run(program, LIMITS).status == "passed"


def test_files_outside_its_folder_are_out_of_reach(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    inside = "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc."
    for path in (kept, tmp_path / "new"):
        assert run(f"open({str(path)!r}, 'w')", LIMITS).status == "refused"
    for attempt in ("os.remove", "os.truncate", "os.listdir"):
        argument = f"({str(kept)!r}, 0)" if attempt == "os.truncate" else f"({str(kept)!r})"
        assert run(f"import os\n{attempt}{argument}", LIMITS).status == "refused"
    assert run(f"import shutil\nshutil.rmtree({str(tmp_path)!r})", LIMITS).status == "refused"
    name = str(kept).encode()
    for call in (f"open({name!r}, 0) == -1", f"open({name!r}, 1) == -1", f"unlink({name!r}) == -1"):
        assert run(inside + call, LIMITS).status == "passed"
    assert [one.name for one in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "kept"


def test_its_own_folder_is_its_own():
    program = "import os, tempfile\nopen('a', 'w').write('x')\nassert open('a').read() == 'x'\nos.remove('a')\n"
    assert (
        run(program + "tempfile.TemporaryFile().write(b'x')\nassert os.listdir() == ['program.py']").status == "passed"
    )


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "secret")
    program = "import os\nassert not [key for key in os.environ if 'TOKEN' in key], os.environ"
    assert run(program).status == "passed"


def test_it_is_as_good_as_alone(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert run("import test_sandbox").status == "failed"
    assert run("import sys\nassert 'torch' not in sys.modules\nassert sys.stdin.read() == ''").status == "passed"


def test_a_refusal_that_is_caught_and_without_consequence_passes():
    assert run("try:\n  open('/etc/passwd')\nexcept OSError: pass\nassert True").status == "passed"


def test_one_that_sleeps_is_ended_by_the_wall_clock():
    outcome = run("import time\ntime.sleep(1000)", Limits(seconds=1.0))
    assert (outcome.status, outcome.why) == ("timed out", "it ran for more than 1 seconds")


def test_sets_have_one_order():
    program = "print(list({'a', 'b', 'c', 'd', 'e'}))"
    assert run(program).output == run(program).output


def test_what_it_prints_is_kept():
    assert run("print('hello')").output == "hello\n"


@pytest.mark.parametrize(
    ("program", "given", "expected", "status", "why"),
    [
        ("print(int(input()) + 1)", "41\n", "42", "passed", ""),
        ("print(int(input()) + 1)", "41\n", "43", "failed", "it printed '42\\n' instead of '43'"),
        ("import sys\nprint('noise', file=sys.stderr)\nprint(2)\nsys.exit()", "", "2\n", "passed", ""),
        ("print(2)\nexit(1)", "", "2\n", "failed", "it exited (1)"),
        ("import os\nassert os.listdir() == ['program.py']", "x", "", "passed", ""),
        ("import os\nos._exit(0)", "", "", "failed", "it left with 0"),
        ("input()\ninput()", "one line", "", "failed", "EOFError"),
    ],
)
def test_what_is_read_and_printed(program, given, expected, status, why):
    outcome = run(Trial(program, given, expected), LIMITS)
    assert (outcome.status, why in outcome.why) == (status, True), outcome


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        (b" 1  2 \n3\n\n", "1 2\n3", True),
        (b"0.3333333", "0.333333333", True),
        (b"0.333", "0.3333", False),
        (b"1 2", "1\n2", False),
        (b"1 2 3", "1 2", False),
        (b"yes", "Yes", False),
        (b"", "", True),
        (b"\xff", "x", False),
    ],
)
def test_outputs_are_compared_word_by_word(printed, expected, same):
    assert same_output(printed, expected) is same


def test_many_run_side_by_side_in_their_order():
    seen = []
    programs = ["assert True", "assert False", "assert True", "1 / 0"]
    outcomes = run_all(programs, LIMITS, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert [one.status for one in outcomes] == ["passed", "failed", "passed", "failed"]
    assert seen == [(1, 3), (2, 3), (3, 3)]  # the same program runs once
    assert run_all([], LIMITS) == []


def test_without_walls_nothing_runs(monkeypatch, tmp_path):
    """Where the kernel offers none, the program is not started unless asked for; then Python's own wall is left."""
    from multitune.scoring.code import sandbox

    copy = tmp_path / "inside.py"
    text = sandbox.INSIDE.read_text(encoding="utf-8")
    copy.write_text(text.replace('startswith("linux")', 'startswith("plan9")'), encoding="utf-8")
    monkeypatch.setattr(sandbox, "INSIDE", copy)
    with pytest.raises(MultituneError, match=r"Programs cannot be shut in here: this is not Linux\."):
        run("open('ran', 'w')", LIMITS)
    weak = Limits(cpu_seconds=1, weak=True)
    assert run("assert True", weak).status == "passed"
    for attempt in ("import ctypes\nctypes.CDLL(None)", "import os\nos.fork()", f"open({str(tmp_path / 'x')!r}, 'w')"):
        assert run(attempt, weak).status == "refused"


def humaneval():
    file = Path(__file__).parents[4] / "shared/data/humaneval/test.jsonl"
    if not file.is_file():
        pytest.skip("../shared/data/humaneval is not beside the repository")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_humaneval_solutions_pass_and_others_fail():
    rows = humaneval()
    ends = [f"\n{row['test']}\ncheck({row['entry_point']})\n" for row in rows]
    right = [row["prompt"] + row["canonical_solution"] + end for row, end in zip(rows, ends, strict=True)]
    wrong = [row["prompt"] + "    return NotImplemented\n" + end for row, end in zip(rows, ends, strict=True)][::8]
    outcomes = run_all([*right, *wrong])
    assert [row["task_id"] for row, one in zip(rows, outcomes, strict=False) if one.status != "passed"] == []
    assert {one.status for one in outcomes[len(right) :]} == {"failed"}


def test_the_parent_keeps_its_own_limits():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    run("assert True", LIMITS)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert os.getpgid(0) == os.getpgrp()
