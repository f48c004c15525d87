"""The Scoreboard: one row per score, kept as a Parquet file; every table and report is read from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError

if TYPE_CHECKING:
    import pyarrow

    from multitune.scoring.score import TaskScore

DEFAULTS: dict[str, Any] = {
    "variant": "", "shots": 0, "shots_used": 0.0, "draw_seed": 0, "prompts": "", "normalisation": "",
    "template": "",
}  # fmt: skip
"""What a column holds where a row does not say; boards of earlier versions lack some of them."""

HOW = ("normalisation", "template")
"""What tells scores of one pass apart."""

KEY = ("run", "step", "model", "task", "split", "metric", "seed", "variant", "shots", "draw_seed", *HOW)
COLUMNS = ("run", "step", "model", "task", "split", "metric", "value", "low", "high", "n", "seed", *DEFAULTS)


class Scoreboard:
    """Rows of scores, in the order in which they came.

    A row is a mapping with the keys of COLUMNS: the run's name, the step that left the model, the model's name, the
    task, its split, the metric, its value with the bounds of its 95 % interval, the number of scored examples, the
    seed, and in a sweep the variant with its value on every axis ("seed=1,mixture=equal"; "" elsewhere). Then how the
    task was asked: demonstrations asked for and used (the mean over questions), the seed of their draw, a digest of all
    prompts, how choices were compared, and by which template where every one has a score ("" over all). A row that
    agrees with an earlier one in KEY takes its place.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.append(rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, each with the keys of COLUMNS."""
        return list(self._rows.values())

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; a row with the key of an existing one replaces it."""
        for row in rows:
            row = {**DEFAULTS, **row}
            if set(row) != set(COLUMNS):
                raise ValueError(f"a scoreboard row has the keys {COLUMNS}, not {tuple(row)}")
            self._rows[tuple(row[name] for name in KEY)] = {name: row[name] for name in COLUMNS}

    @classmethod
    def load(cls, path: Path) -> Scoreboard:
        """Read a Scoreboard; one that does not exist yet is empty.

        Raises:
            MultituneError: the file is cut short or is not a Scoreboard.
        """
        import pyarrow
        import pyarrow.parquet

        if not path.is_file():
            return cls()
        try:
            table = pyarrow.parquet.ParquetFile(path).read()
            columns = [name for name in COLUMNS if name not in DEFAULTS or name in table.column_names]
            return cls(table.select(columns).to_pylist())
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise MultituneError(
                f"The scoreboard cannot be read: {str(error).splitlines()[0]}",
                str(path),
                "Delete the file and run the recipe again; finished steps are only scored anew.",
            ) from error

    def save(self, path: Path) -> None:
        """Write all rows; the file is replaced whole or not at all."""
        import pyarrow
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows, schema=_schema()), temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def measures(scores: Iterable[TaskScore]) -> list[dict[str, Any]]:
    """Return what was measured, one mapping per task and metric: the Scoreboard's rows without whose they are.

    What other normalisations make of the same choices follows what the chosen one does; so do scores of single
    templates.
    """
    return [
        {
            "task": score.task, "split": score.split, "metric": metric, "value": value,
            "low": score.intervals[metric][0], "high": score.intervals[metric][1], "n": score.n,
            "shots": score.shots, "shots_used": score.shots_used, "draw_seed": score.draw_seed,
            "prompts": score.prompts, "normalisation": score.normalisation,
            "template": score.template,
        }
        for whole in scores
        for score in (whole, *whole.others)
        for metric, value in score.metrics.items()
    ]  # fmt: skip


def as_chosen(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without those of other normalisations than the chosen one, which stands first, and of templates."""
    return _first_of(({**DEFAULTS, **one} for one in rows), *HOW)


def of_templates(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of single templates, under the chosen normalisation; [] where templates were not told apart."""
    return _first_of((row for one in rows if (row := {**DEFAULTS, **one})["template"]), "normalisation")


def _first_of(rows: Iterable[dict[str, Any]], *but: str) -> list[dict[str, Any]]:
    """Return the first of the rows that differ in nothing of KEY but in the named columns."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(row.get(name) for name in KEY if name not in but), row)
    return list(first.values())


def score_rows(
    measured: Iterable[dict[str, Any]], *, run: str, step: str, model: str, seed: int, variant: str = ""
) -> list[dict[str, Any]]:
    """Return the Scoreboard's rows of what was measured of a model."""
    whose = {"run": run, "step": step, "model": model, "seed": seed, "variant": variant}
    return [whose | one for one in measured]


def _schema() -> pyarrow.Schema:
    import pyarrow

    numbers = dict.fromkeys(("value", "low", "high", "shots_used"), pyarrow.float64())
    counts = dict.fromkeys(("n", "seed", "shots", "draw_seed"), pyarrow.int64())
    return pyarrow.schema([(name, {**numbers, **counts}.get(name, pyarrow.string())) for name in COLUMNS])
