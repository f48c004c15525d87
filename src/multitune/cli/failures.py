"""How a command ends: exit codes, and errors told to people on stderr or to programs as JSON on stdout."""

from __future__ import annotations

import json as json_format
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from multitune.errors import MultituneError, MultituneErrors
from multitune.training.processes import is_loss_of_process, main_process_ends, rank

# The class of every usage error (missing argument, unknown option); typer exports only its child BadParameter, and
# keeps the parent in click or in its own copy of click, depending on the version.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


def told(command: Callable[[], Any], *, json: bool, debug: bool, verb: str = "") -> int:
    """Return the exit code of a command after telling any failure to whoever asked.

    Args:
        command: runs the verb; its integer result, if any, is the exit code of an early exit.
        json: tell failures as {"error": {...}} on stdout instead of sentences on stderr.
        debug: show the traceback too.
        verb: that runs; it decides what an interruption leaves.
    """
    tell = tell_unless_main_does if rank() else tell_programs if json else tell_people
    try:
        code = command()
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer turns KeyboardInterrupt into this exit code, without a word
            return tell([interruption(verb)], INTERRUPTED, debug)
        return code if isinstance(code, int) else 0
    except MultituneError as error:
        return tell(mistakes(error), error.exit_code, debug)
    except UsageError as error:
        return tell([mistake_in_usage(error)], MISTAKE, debug)
    except Stopped as stopped:
        told_of = {"what": stopped.what, "where": stopped.where, "mend": HOW_TO_RESUME}
        return tell([told_of], INTERRUPTED, debug)
    except (KeyboardInterrupt, typer.Abort):
        return tell([interruption(verb)], INTERRUPTED, debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left; Python would complain about stdout once more at exit
        return FAILURE
    except Exception as error:
        if is_loss_of_process(error):
            return tell([lost_process()], FAILURE, debug)
        what = f"{type(error).__name__}: {first_line(error)}"
        hint = "This is a bug or a broken installation: run the command again with --debug and report the traceback."
        return tell([{"what": what, "where": "", "mend": hint}], FAILURE, debug)


HOW_TO_RESUME = "Give the same command again, without --fresh, to go on from there."
KEPT = {"run", "quickstart", "reproduce", "compare-methods", "prompt-tune", "transfer"}
"""Verbs that keep finished steps and the checkpoints of an unfinished one."""


class Stopped(Exception):
    """A verb that was interrupted and knows more of it than that: what was reached, and where it lies."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.what, self.where = what, where


def interruption(verb: str) -> dict[str, str]:
    """Return what is told when someone stopped the command."""
    if verb in KEPT:
        what = "Interrupted; finished steps are kept, and so are whole checkpoints of the one that was not."
        return {"what": what, "where": "", "mend": HOW_TO_RESUME}
    return {"what": "Interrupted.", "where": "", "mend": "Give the same command again to begin anew."}


def lost_process() -> dict[str, str]:
    """Return what is told when another of a launcher's processes has gone away."""
    what = "Another process of this run has ended."
    return {"what": what, "where": "", "mend": f"It or the launcher says why. {HOW_TO_RESUME}"}


def mistakes(error: MultituneError) -> list[dict[str, str]]:
    """Return every mistake that an error carries, as mappings with what, where and mend."""
    errors = error.errors if isinstance(error, MultituneErrors) else [error]
    return [{"what": each.what, "where": str(each.where), "mend": each.mend} for each in errors]


def mistake_in_usage(error: Any) -> dict[str, str]:
    """Return a usage error of the command line in the form of all other mistakes."""
    path = error.ctx.command_path if error.ctx is not None else "multitune"
    return {"what": error.format_message(), "where": path, "mend": f"See `{path} --help`."}


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or "" when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


def tell_people(found: list[dict[str, str]], code: int, debug: bool) -> int:
    """Print mistakes to stderr and return the exit code."""
    if debug:
        traceback.print_exc()
    for mistake in found:
        head = "" if code == INTERRUPTED else "error: "
        if rank():
            head = f"process {rank()}: {head}"
        print(f"{head}{mistake['what']}", file=sys.stderr)
        if mistake["where"]:
            print(f"  where: {mistake['where']}", file=sys.stderr)
        print(f"  mend:  {mistake['mend']}", file=sys.stderr)
    if len(found) > 1:
        print(f"{len(found)} mistakes found.", file=sys.stderr)
    return code


def tell_unless_main_does(found: list[dict[str, str]], code: int, debug: bool) -> int:
    """Print what went wrong on another process than the main one, unless that one ends too, of the same or of this."""
    return code if main_process_ends() else tell_people(found, code, debug)


def tell_programs(found: list[dict[str, str]], code: int, debug: bool) -> int:
    """Print mistakes to stdout as one JSON object and return the exit code."""
    if debug:
        traceback.print_exc()
    print(json_format.dumps({"error": {**found[0], "code": code, "all": found}}, indent=2, ensure_ascii=False))
    return code
