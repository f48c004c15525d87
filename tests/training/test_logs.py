"""The JSON-lines log and the live view."""

from __future__ import annotations

import io
import json
import logging
import math

from rich.console import Console
from rich.logging import RichHandler

from multitune.training.logs import JsonLinesLog, LiveView


def record(step, loss=1.0):
    task = {"loss": loss, "tokens": 10, "examples": 2, "share": 0.5}
    return {"step": step, "loss": loss, "tokens_per_second": 1234.0, "tasks": {"a": task}, "repeats": {"a": 0.25}}


def test_a_resumed_log_drops_the_steps_that_are_done_again(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    log = JsonLinesLog(path, 0)
    for step in (10, 20, 30):
        log.write(record(step))
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    JsonLinesLog(path, 20).write(record(30, 2.0))
    assert [(r["step"], r["loss"]) for r in map(json.loads, path.read_text().splitlines())] == [
        (10, 1.0),
        (20, 1.0),
        (30, 2.0),
    ]


def test_numbers_that_json_cannot_say_become_null(tmp_path):
    JsonLinesLog(tmp_path / "log.jsonl", 0).write(record(1, math.nan))
    assert json.loads((tmp_path / "log.jsonl").read_text())["tasks"]["a"]["loss"] is None


def test_without_a_terminal_a_record_is_one_line():
    out = io.StringIO()
    view = LiveView("joint", Console(file=out, force_terminal=False, width=200))
    view.show(record(10))
    assert out.getvalue().splitlines() == ["step 10/0  loss 1.0000  1,234 tokens/s  a 1.000"]


def test_in_a_terminal_every_task_has_a_row():
    out = io.StringIO()
    view = LiveView("joint", Console(file=out, force_terminal=True, width=120))

    class State:
        max_steps, global_step = 20, 0

    view.on_train_begin(None, State, None)
    view.show(record(10))
    view.close()
    view.close()
    assert "repeats" in out.getvalue()
    assert "50.0%" in out.getvalue()


def test_the_view_and_the_log_share_one_console():
    console, logger = Console(file=io.StringIO()), logging.getLogger("multitune")
    handler = RichHandler(console=console)
    logger.addHandler(handler)
    try:
        assert LiveView("joint").console is console
    finally:
        logger.removeHandler(handler)
    assert LiveView("joint").console is not console
