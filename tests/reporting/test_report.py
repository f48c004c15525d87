"""The page: what it says, what it never does, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from multitune.errors import MultituneError
from multitune.reporting.comparison import compare
from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from multitune.reporting.terminal import tables
from multitune.scoring.scoreboard import Scoreboard

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(sample_run):
    run = sample_run()
    return write_report([run], run / "report.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_and_nothing_runs(page):
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert "@import" not in page


def test_training_and_held_out_tasks_stand_apart_with_before_after_and_alone(page):
    text = re.sub(r"<[^>]+>", " ", page)
    assert text.index("Training tasks") < text.index("Held-out tasks")
    for word in ("sst2", "clinc150", "copy_letters", "before", "joint", "alone", "mean of the 6 tasks"):
        assert word in text


def test_differences_come_from_paired_predictions(sample_run):
    (comparison,) = compare([read_run(sample_run())])
    row = next(row for row in comparison.tables[0].rows if row.task == "sst2")
    difference = row.differences["joint - base"]
    assert difference.value == pytest.approx(row.scores["joint"].value - row.scores["base"].value)
    assert difference.low < difference.value < difference.high
    assert difference.verdict == "better"


def test_seeds_of_one_recipe_are_averaged(sample_run):
    runs = [read_run(sample_run(f"run-{seed}", seed=seed)) for seed in range(3)]
    (comparison,) = compare(runs)
    score = comparison.tables[0].rows[0].scores["joint"]
    assert len(score.runs) == 3
    assert score.value == pytest.approx(sum(score.runs) / 3)
    assert score.spread is not None


def test_other_recipes_get_a_part_of_their_own(sample_run):
    runs = [read_run(sample_run("a")), read_run(sample_run("b", name="second"))]
    assert [comparison.name for comparison in compare(runs)] == ["first-light", "second"]


EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def test_html_in_the_data_is_text(sample_run):
    run = sample_run()
    for path in run.glob("steps/*/predictions/sst2.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({**row, "prompt": EVIL, "prediction": EVIL, "reference": EVIL}) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text() + f"# {EVIL}\n")
    page = write_report([run], run / "report.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_html_in_names_and_facts_is_text(sample_run):
    run = sample_run()
    board = Scoreboard.load(run / "scoreboard.parquet").rows
    rows = [{**row, "task": row["task"].replace("sst2", EVIL), "metric": f"{row['metric']}{EVIL}"} for row in board]
    Scoreboard(rows).save(run / "scoreboard.parquet")
    for path in (run / "steps" / "joint" / "log.jsonl", run / "run.json"):
        path.write_text(path.read_text().replace("sst2", EVIL).replace("multitune run", f"multitune run {EVIL}"))
    page = write_report([run], run / "report.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 6  # table, metrics, chart, mixture, command, every metric


def test_an_interrupted_run_can_be_reported(sample_run):
    run = sample_run()
    log = run / "steps" / "joint" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 410, "lo')
    assert "joint" in write_report([run], run / "report.html").read_text()


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(MultituneError, match="not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(MultituneError, match="Nothing has been scored"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_told(sample_run, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MultituneError, match="cannot be written"):
        write_report([sample_run()], tmp_path / "taken" / "report.html")


def test_the_terminal_says_the_same_in_signs(sample_run):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables([sample_run()]):
        console.print(table)
    console.file.close()
    text = console.export_text()
    assert "Held-out tasks" in text
    assert re.search(r"sst2 +accuracy +300 .*\+0\.\d{3}\*", text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_the_window_in_a_real_browser(sample_run, tmp_path, width):
    """A frame of the window's width shows the page; a script outside it measures what would scroll sideways."""
    run = sample_run()
    write_report([run], tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(
        f"<iframe id=f src=report.html style='width:{width}px;height:900px;border:0'></iframe><p id=o></p>"
        "<script>f.onload = () => { const e = f.contentDocument.documentElement;"
        "o.textContent = `measured ${e.scrollWidth} of ${e.clientWidth}` }</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, Path(tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    measured = re.search(r"measured (\d+) of (\d+)", done.stdout)
    assert measured, done.stdout[-500:] + done.stderr[-500:]
    assert int(measured[1]) <= int(measured[2])
