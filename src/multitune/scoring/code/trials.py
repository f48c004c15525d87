"""What an answer is put to the test by: a program made of it, once, or once for every test case of its row.

Test cases come as APPS has them (Hendrycks et al. 2021): inputs and outputs, of a function whose name is told, or of a
program that reads from standard input and prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.scoring.code.sandbox import Limits, Outcome, Trial, run_all

if TYPE_CHECKING:
    from multitune.scoring.code.evaluation import CodeAnswers
    from multitune.tasks.task import Prompted, Task

CALL = """
import json
arguments, wanted = json.loads({told!r})
solve = Solution().{name} if "Solution" in dir() else {name}
found = json.loads(json.dumps(solve(*arguments)))
assert found == wanted or [found] == wanted, f"{{str(found)[:80]}} instead of {{str(wanted)[:80]}}"
"""
"""Behind an answer: calls its function, bare or a method of Solution.

JSON makes lists of tuples, as it made the outputs; an output may stand in a list of its own, as in the data."""


def trials(task: Task, row: Prompted, answers: Sequence[str]) -> list[list[Trial]]:
    """Return what every answer to a row is put to the test by: a program, or one for each of the row's test cases.

    Raises:
        MultituneError: the task does not say how an answer is tested, the row lacks a field of its program, or the test
            cases are none.
    """
    texts = _programs(task, row, answers)
    if task.cases is None:
        return [[Trial(text)] for text in texts]
    inputs, outputs, function = _cases(task, row)
    if function:
        told = [json.dumps(pair) for pair in zip(inputs, outputs, strict=True)]
        return [[Trial(text + CALL.format(told=one, name=function)) for one in told] for text in texts]
    pairs = [(_joined(given), _joined(wanted)) for given, wanted in zip(inputs, outputs, strict=True)]
    return [[Trial(text, stdin=given, expected=wanted) for given, wanted in pairs] for text in texts]


def run_answers(
    task: Task,
    rows: Sequence[Prompted],
    answers: Sequence[CodeAnswers],
    limits: Limits,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CodeAnswers]:
    """Return answers with how their programs ended and, of a task with test cases, the share of these that passed.

    Raises:
        MultituneError: as `trials` and `sandbox.run`.
    """
    each = [trials(task, row, one.answers) for row, one in zip(rows, answers, strict=True)]
    flat = [trial for of_row in each for of_answer in of_row for trial in of_answer]
    ended = iter(run_all(flat, limits, workers=workers, progress=progress))
    found = []
    for one, of_row in zip(answers, each, strict=True):
        outcomes = [[next(ended) for _ in of_answer] for of_answer in of_row]
        shares = tuple(sum(case.status == "passed" for case in some) / len(some) for some in outcomes)
        whole = tuple(_of_all_cases(some) for some in outcomes)
        found.append(replace(one, outcomes=whole, cases=None if task.cases is None else shares))
    return found


def _programs(task: Task, row: Prompted, answers: Sequence[str]) -> list[str]:
    from multitune.tasks.bad_rows import BadRow
    from multitune.tasks.templates import compile_template

    if task.program is None:
        if task.cases is not None:
            return list(answers)
        raise MultituneError(
            f"Task '{task.name}' does not say how an answer is tested.",
            f"tasks.{task.name}.program",
            "Give it a template of the program to run, with {{ completion }} where the answer stands, or cases.",
        )
    render = compile_template(task.program, f"tasks.{task.name}.program")
    try:
        return [render({**row.example.fields, "completion": answer}) for answer in answers]
    except BadRow as error:
        raise MultituneError(
            f"The program of task '{task.name}' cannot be made: {error.reason}.",
            row.example.where,
            "Correct the template or the row.",
        ) from error


def _cases(task: Task, row: Prompted) -> tuple[list[Any], list[Any], str]:
    """Return inputs, outputs and the name of the function ("" for programs that read and print)."""
    told = row.example.fields.get(task.cases or "")
    try:
        cases: Any = json.loads(told) if isinstance(told, str) else told
        inputs, outputs, function = cases["inputs"], cases["outputs"], cases.get("fn_name") or ""
        good = isinstance(inputs, list) and isinstance(outputs, list) and 0 < len(inputs) == len(outputs)
        good = good and (not function or (function.isidentifier() and all(isinstance(one, list) for one in inputs)))
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise MultituneError(
            f"The field '{task.cases}' of task '{task.name}' holds no test cases.",
            row.example.where,
            "Give it {inputs: [...], outputs: [...]}, as many of the one as of the other, or take the row out.",
        )
    return inputs, outputs, function


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _of_all_cases(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the first ending that is no pass, saying of which case; a pass where all have passed."""
    for number, one in enumerate(outcomes, start=1):
        if one.status != "passed":
            return one if len(outcomes) == 1 else replace(one, why=f"case {number} of {len(outcomes)}: {one.why}")
    return outcomes[0]
