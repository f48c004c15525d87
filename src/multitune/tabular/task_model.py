"""A tabular estimator that learns tasks of a recipe and answers them: fitted, saved and asked by the tasks' names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from multitune.errors import MultituneError, nearest
from multitune.tabular.task_table import Column, answer_of, as_frame
from multitune.tasks.task import Example, Prompted, Split, Task

Kind = Literal["rmtgb", "multitab"]

TABLE_FILE = "table.json"
"""Beside the estimator's own files: its class, its columns and its tasks."""

FORMAT = 1
"""Version of that file; a reader takes its own and older ones."""

CLASSES = {"rmtgb": ("RMTGBRegressor", "RMTGBClassifier"), "multitab": ("MultiTabNet",)}
"""The estimators by what recipes call them; of rmtgb that of numbers first."""

SETTLED = {"target_types": "the kinds of the tasks say it"}
"""Arguments that a recipe settles elsewhere."""


def estimator_class(name: str) -> Any:
    """Return a class of `multitune.tabular` by its name.

    Raises:
        MultituneError: a package that it needs is not installed.
    """
    import multitune.tabular

    return getattr(multitune.tabular, name)


def check_options(kind: Kind, options: Mapping[str, Any]) -> Iterator[MultituneError]:
    """Yield what is wrong with the arguments of an estimator; ``where`` is the argument's name.

    Raises:
        MultituneError: a package that it needs is not installed.
    """
    cls = estimator_class(CLASSES[kind][0])
    from multitune.tabular import boosting_inputs, network_inputs

    known = [name for name in inspect.signature(cls).parameters if name not in SETTLED]
    check = boosting_inputs.check_settings if kind == "rmtgb" else network_inputs.check_settings
    sound = {}
    for name, value in options.items():
        if name in SETTLED:
            yield MultituneError(f"{name} is not set here: {SETTLED[name]}.", name, "Take it out.")
        elif name not in known:
            yield MultituneError(
                f"{cls.__name__} has no argument '{name}'.{nearest(name, known)}",
                name,
                f"Use some of: {', '.join(known)}.",
            )
        elif value is not None or inspect.signature(cls).parameters[name].default is not None:
            try:
                check({name: value})
                sound[name] = value
            except MultituneError as error:
                yield MultituneError(error.what, name, error.mend)
    try:
        check(cls(**sound).get_params(deep=False))
    except MultituneError as error:  # two that do not go together
        yield MultituneError(error.what, error.where, error.mend)


@dataclass(frozen=True)
class TableModel:
    """A fitted estimator, and what it takes to ask it.

    Attributes:
        kind: as recipes call it.
        estimator: of `multitune.tabular`, fitted.
        columns: that it learned from, in its order.
        tasks: that it learned, resolved.
    """

    kind: Kind
    estimator: Any
    columns: tuple[Column, ...]
    tasks: tuple[Task, ...]

    def task(self, name: str) -> Task | None:
        """Return the task of a name as it was learned, None for others."""
        return next((task for task in self.tasks if task.name == name), None)

    def can_answer(self, task: Task) -> bool:
        """Whether it learned a task, or answers any of its kind by what tasks share."""
        learned = self.task(task.name)
        if learned is not None or self.kind != "rmtgb":
            return learned is not None and learned.kind == task.kind
        named = self.estimator.task_column is not None
        return task.kind == self.tasks[0].kind and (named or self.estimator.unseen_task == "shared")

    def answers(self, task: Task, rows: Sequence[Example]) -> list[float] | list[int]:
        """Return a number, or the place of a choice, for every row.

        Raises:
            MultituneError: a row lacks a column or has a cell that cannot be; tasks or classes that were not learned.
        """
        frame = as_frame(rows, self.columns)
        if self.kind == "multitab":
            return self._network_answers(task, frame)
        estimator = self.estimator
        names = {} if estimator.task_column is not None else {"task": [task.name] * len(frame)}
        if task.kind == "regress":
            return [float(value) for value in estimator.predict(frame, **names)]
        classes = estimator.classes_.tolist()
        places = [place for place, text in enumerate(task.choice_texts) if text in classes]
        if not places:
            raise MultituneError(
                f"No choice of '{task.name}' was learned.", f"tasks.{task.name}.choices", f"Known are {classes}."
            )
        own = [classes.index(task.choice_texts[place]) for place in places]
        best = estimator.predict_proba(frame, **names)[:, own].argmax(axis=1)  # of the task's own choices alone
        return [places[one] for one in best]

    def _network_answers(self, task: Task, frame: Any) -> list[float] | list[int]:
        column = self.estimator.predict(frame)[task.name]
        if task.kind == "regress":
            return [float(value) for value in column]
        place = {text: number for number, text in enumerate(task.choice_texts)}
        return [place[str(text)] for text in column]

    def save(self, folder: Path) -> None:
        """Write the estimator as its own ``save`` does, and ``table.json`` last; each file whole or not at all."""
        from multitune.tabular.estimator_files import write_in_one_piece

        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE_FILE).unlink(missing_ok=True)
        self.estimator.save(folder)
        sources = {"train", "validation", "test"}
        facts = {
            "format": FORMAT,
            "estimator": "TableModel",
            "kind": self.kind,
            "class": type(self.estimator).__name__,
            "columns": [asdict(column) for column in self.columns],
            "tasks": [task.model_dump(mode="json", exclude=sources, exclude_none=True) for task in self.tasks],
        }
        write_in_one_piece(folder / TABLE_FILE, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def is_table_model(folder: Path) -> bool:
    """Whether a folder holds what `TableModel.save` wrote."""
    return (folder / TABLE_FILE).is_file()


def load_table_model(folder: Path) -> TableModel:
    """Return the model that `TableModel.save` wrote.

    Raises:
        MultituneError: a file is damaged, missing, or of a newer version.
    """
    from multitune.tabular.estimator_files import read_facts

    file = folder / TABLE_FILE
    facts = read_facts(file, "TableModel", FORMAT)
    try:
        kind, name = facts["kind"], facts["class"]
        columns = tuple(Column(**column) for column in facts["columns"])
        tasks = tuple(Task.model_validate(task) for task in facts["tasks"])
        known = name in CLASSES[kind]
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise MultituneError(
            "The file does not describe a saved estimator.", str(file), "Make or copy the model again."
        )
    return TableModel(kind, estimator_class(name).load(folder), columns, tasks)


def fit_table_model(
    kind: Kind,
    options: Mapping[str, Any],
    tasks: Sequence[Task],
    rows: Mapping[str, Sequence[Prompted]],
    columns: tuple[Column, ...],
    *,
    seed: int,
    validation: Mapping[str, Sequence[Prompted]] | None = None,
) -> TableModel:
    """Return an estimator fitted to the rows of tasks.

    rmtgb learns one column of answers over all rows, each of its task; multitab a column of answers per task, of rows
    that several tasks share where they read the same source.

    Args:
        kind: which one.
        options: arguments of its constructor; ``random_state`` is the seed unless it says otherwise.
        tasks: resolved; of one kind for rmtgb.
        rows: training rows by task.
        columns: that are learned from.
        seed: of what is random.
        validation: rows by task that it stops early by, in place of some kept aside.

    Raises:
        MultituneError: what the estimator refuses.
    """
    settings = {"random_state": seed, **options}
    if kind == "rmtgb":
        number, classes = CLASSES["rmtgb"]
        if isinstance(theta0 := settings.get("theta0"), Mapping):
            settings["theta0"] = {str(task): theta for task, theta in theta0.items()}
        estimator = estimator_class(number if tasks[0].kind == "regress" else classes)(**settings)
        table = _stacked(tasks, rows, columns, named=estimator.task_column is None)
        held = None if validation is None else _stacked(tasks, validation, columns, named="task" in table)
        extra = {} if held is None else {"eval_set": tuple(held[name] for name in ("X", "y", "task") if name in held)}
    else:
        types = {task.name: "regression" if task.kind == "regress" else "multiclass" for task in tasks}
        estimator = estimator_class(CLASSES["multitab"][0])(target_types=types, **settings)
        table = _side_by_side(tasks, rows, columns, "train")
        held = None if validation is None else _side_by_side(tasks, validation, columns, "validation")
        extra = {} if held is None else {"eval_set": (held["X"], held["y"])}
    estimator.fit(**table, **extra)
    return TableModel(kind, estimator, columns, tuple(tasks))


def _stacked(
    tasks: Sequence[Task], rows: Mapping[str, Sequence[Prompted]], columns: Sequence[Column], *, named: bool
) -> dict[str, Any]:
    """Return the rows of all tasks one after another: X, y, the tasks' names, and weights where they differ."""
    every = [(task, row) for task in tasks for row in rows[task.name]]
    table: dict[str, Any] = {
        "X": as_frame([row.example for _, row in every], columns),
        "y": [answer_of(row) for _, row in every],
    }
    if named:
        table["task"] = [task.name for task, _ in every]
    if any(task.weight != 1 for task in tasks):
        table["sample_weight"] = [task.weight for task, _ in every]
    return table


def _side_by_side(
    tasks: Sequence[Task], rows: Mapping[str, Sequence[Prompted]], columns: Sequence[Column], split: Split
) -> dict[str, Any]:
    """Return every row once, with the answers of all tasks that read it: X, y by task, weights where they differ."""
    import numpy as np
    import pandas as pd

    places: dict[tuple[str, str], int] = {}  # by source and id, which are unique together
    examples: list[Example] = []
    sources = {task.name: repr((task.train, task.source(split))) for task in tasks}
    for task in tasks:
        for row in rows[task.name]:
            if (sources[task.name], row.example.id) not in places:
                places[sources[task.name], row.example.id] = len(examples)
                examples.append(row.example)
    y: dict[str, Any] = {}
    for task in tasks:
        answers: list[Any] = [None] * len(examples)
        for row in rows[task.name]:
            answers[places[sources[task.name], row.example.id]] = answer_of(row)
        y[task.name] = pd.Series(answers, dtype=np.float64 if task.kind == "regress" else object)
    table: dict[str, Any] = {"X": as_frame(examples, columns), "y": pd.DataFrame(y)}
    if any(task.weight != 1 for task in tasks):
        table["sample_weight"] = np.tile([task.weight for task in tasks], (len(examples), 1))
    return table
