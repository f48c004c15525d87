"""Writes report.html: one page about one or several runs that needs no script, font or image from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune import __version__
from multitune.recipes.run_folder import write_whole
from multitune.reporting import charts, facts, training_curves
from multitune.reporting.coefficients import coefficients
from multitune.reporting.comparison import Comparison, Difference, Table, TaskRow, compare, key
from multitune.reporting.continual import sequences
from multitune.reporting.costs import costs
from multitune.reporting.languages import depth, language_tables, seen_in_words
from multitune.reporting.learned_merges import learned_merges
from multitune.reporting.levels import level_tables
from multitune.reporting.merge_search import merge_searches, search_view
from multitune.reporting.run_folder import BASE
from multitune.reporting.samples import pick_samples
from multitune.reporting.shot_curves import shot_curves
from multitune.reporting.sweep import effects, is_sweep, read_runs, read_sweep, setting

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page about some run folders and return its path.

    Runs of one recipe that differ by their seed only are averaged; different recipes get a part of the page each. A
    sweep's folder stands for its variants, and for the tables of what its axes change.

    Args:
        runs: at least one folder that `multitune run` has left.
        out: the page; its folder is created, an older page is replaced.

    Raises:
        MultituneError: a folder is not a run, or the page cannot be written.
    """
    sweeps = [read_sweep(run) for run in runs if is_sweep(run)]
    settings = {run.folder: setting(values) for sweep in sweeps for values, run in sweep.runs}
    comparisons = compare(read_runs(runs))
    parts = [part(comparison, settings.get(comparison.runs[0].folder, "")) for comparison in comparisons]
    write_whole(out, render(parts, [{"runs": sweep, "tables": effects(sweep)} for sweep in sweeps]))
    return out


def write_search_page(name: str, told: Mapping[str, Any], out: Path) -> Path:
    """Write the page about the candidates of one merge and return its path.

    Args:
        name: of the merge.
        told: its ``search.json``.
        out: the page.
    """
    search = search_view(name, told)
    write_whole(out, environment().get_template("search.html").render(search=search, version=__version__))
    return out


def render(parts: Sequence[dict[str, Any]], sweeps: Sequence[dict[str, Any]] = ()) -> str:
    """Return the page's HTML."""
    template = environment().get_template("report.html")
    return template.render(parts=parts, sweeps=sweeps, version=__version__, base=BASE)


def environment() -> Environment:
    """Return the templates' environment; everything that comes from data is escaped by it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score_text, "signed": signed_text, "duration": facts.duration, "key": key}
    environment.filters |= {"breakable": breakable, "depth": depth, "seen_in_words": seen_in_words}
    return environment


def part(comparison: Comparison, setting: str = "") -> dict[str, Any]:
    """Return what the page tells about one recipe; of a sweep's variants at one setting of its axes."""
    runs = list(comparison.runs)
    return {
        "title": f"{comparison.name}: {setting}" if setting else comparison.name,
        "comparison": comparison,
        "headlines": [headline(table) for table in comparison.tables],
        "tables": [(table, whiskers(table)) for table in comparison.tables],
        "all_scores": facts.all_scores(runs),
        "sequences": sequences(runs),
        "shot_curves": shot_curves(runs),
        "levels": level_tables(runs[0]),
        "languages": language_tables(runs),
        "curves": training_curves.loss_panels(runs),
        "validation": training_curves.validation_panels(runs[0]),
        "balance": training_curves.balance_panels(runs[0]),
        "coefficients": coefficients(runs[0]),
        "searches": merge_searches(runs[0]),
        "learned": learned_merges(runs[0]),
        "throughput": training_curves.throughput(runs),
        "costs": costs(runs),
        "mixtures": training_curves.mixtures(runs[0]),
        "samples": pick_samples(runs[0], comparison.tables),
        "overview": facts.overview(runs),
        "details": facts.details(runs),
        "models": [facts.how_to_load(runs[0], node) for node in facts.saved_models(runs[0])],
    }


def headline(table: Table) -> dict[str, Any]:
    """Return a table in one sentence: how many tasks the last arm made better, worse, or left unclear."""
    contrast = next((one for one in reversed(table.contrasts) if one.against == BASE), None)
    if contrast is None:
        return {"title": table.title, "tasks": len(table.rows), "contrast": None}
    found = [row.differences[key(contrast)] for row in table.rows if key(contrast) in row.differences]
    mean = table.means[0] if len(table.means) == 1 else None
    return {
        "title": table.title,
        "tasks": len(found),
        "contrast": contrast,
        "better": sum(one.verdict == "better" for one in found),
        "worse": sum(one.verdict == "worse" for one in found),
        "mean": mean,
        "mean_of": 0 if mean is None else sum(row.metric == mean.metric for row in table.rows),
    }


def whiskers(table: Table) -> dict[tuple[str, str], charts.Whisker]:
    """Return every difference of a table as a dot with its interval, keyed by (task + metric, contrast's key).

    Down a column zero stands at one place, and rows of one unit share a scale; right is always better.
    """
    drawn = {}
    width = 200.0 if len(table.contrasts) == 1 else 110.0
    for name in map(key, table.contrasts):
        rows = [row for row in (*table.rows, *table.means) if name in row.differences]
        marks = {row.task + row.metric: _improvement(row, row.differences[name]) for row in rows}
        unit = {row.task + row.metric: _unit(row, table) for row in rows}
        reach: dict[str, float] = {}
        for place, mark in marks.items():
            reach[unit[place]] = max(reach.get(unit[place], 0.0), *map(abs, mark.ends))
        scaled = {place: mark.over(reach[unit[place]] or 1.0) for place, mark in marks.items()}
        low, high = min(min(mark.ends) for mark in scaled.values()), max(max(mark.ends) for mark in scaled.values())
        for place, mark in scaled.items():
            drawn[place, name] = charts.whisker(mark, low=min(low, 0.0), high=max(high, 0.0), width=width)
    return drawn


def _unit(row: TaskRow, table: Table) -> str:
    """Return what a row's scores may be compared with: all shares between 0 and 1, else its own metric only."""
    scores = [score.value for one in table.rows if one.metric == row.metric for score in one.scores.values()]
    return "share" if row.higher_is_better and all(0 <= score <= 1 for score in scores) else row.metric


def _improvement(row: TaskRow, one: Difference) -> charts.Mark:
    """Return a difference with the sign that makes better positive."""
    sign = 1.0 if row.higher_is_better else -1.0
    interval = () if one.low is None or one.high is None else (sign * one.low, sign * one.high)
    runs = one.runs if len(one.runs) > 1 else ()
    return charts.Mark(sign * one.value, tuple(sorted(interval)), tuple(sign * run for run in runs))


def score_text(value: float) -> str:
    """Return a score with the digits that a reader can use."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def signed_text(value: float) -> str:
    """Return a difference with its sign, the minus as long as the plus; what rounds to zero has none."""
    text = f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"
    return text.replace("-", "\N{MINUS SIGN}") if text.strip("+-0.") else text[1:]


def breakable(name: str) -> Markup:
    """Return a name as HTML that may break after an underscore, a dot or a hyphen."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[_.-])", name))
