"""The bridge to lm-evaluation-harness: its tasks on our models, and our tasks as files of its own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, nearest
from multitune.recipes.fingerprint import digest, location_fingerprint
from multitune.recipes.run_folder import disk_error, locked, write_whole
from multitune.recipes.scoring import backbone_of, tasks_of

if TYPE_CHECKING:
    from multitune.tasks.task import Prompted, Task

logger = logging.getLogger("multitune.recipes")

NO_METRICS = ("alias", "sample_len")
"""What stands among a task's results and is no score."""

VERSION = 1
"""Raised when the same settings would give other results."""


@dataclass(frozen=True)
class HarnessRun:
    """What the harness is asked for.

    Attributes:
        tasks: names of tasks, groups or tags; "*" stands for any letters.
        include: a folder with task files of your own.
        rows: at most so many documents per task.
        shots: demonstrations; None: as each task says.
        chat: whether contexts go through the tokenizer's chat template.
        allow_code: whether tasks may run code: of their folder, or what a model wrote.
        seed: of demonstrations and sampling.
        batch_tokens: tokens of a batch.
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    rows: int | None = None
    shots: int | None = None
    chat: bool = False
    allow_code: bool = False
    seed: int = 0
    batch_tokens: int = 4096


def score_harness(model: str, run: HarnessRun, out: Path | None = None) -> list[dict[str, Any]]:
    """Return the harness's scores of a model, task by task; what a folder holds of the same settings is not redone.

    Args:
        model: folder, hub id or name of the embedded base.
        run: what is asked for.
        out: receives ``scoreboard.parquet`` and ``harness/<task>.json`` with every sample; None keeps nothing.

    Returns:
        One mapping per task and metric, subtasks of groups too: task, metric, value, stderr (None where the harness
        gives none), low, high, n, shots, higher_is_better.

    Raises:
        MultituneError: lm-eval is not installed, a task is unknown or cannot be loaded, or would run code.
    """
    _import()
    names, manager = _tasks(run)
    if out is None:
        return _scored(model, names, manager, run, None)
    try:
        (out / "harness").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with locked(out):
        found = _scored(model, names, manager, run, out / "harness")
        _onto_the_scoreboard(found, model, run, out / "scoreboard.parquet")
    return found


def _scored(
    model: str, names: Sequence[str], manager: Any, run: HarnessRun, folder: Path | None
) -> list[dict[str, Any]]:
    from multitune.models.config import ModelConfig
    from multitune.scoring.harness import HarnessModel

    asker: Any = None
    lines: list[dict[str, Any]] = []
    for name in names:
        key = digest(_told(location_fingerprint(ModelConfig(name=model)), name, run))
        kept = _kept(folder, name, key)
        if kept is None:
            if asker is None:
                backbone = backbone_of(model, [], run.seed)
                asker = HarnessModel(backbone, batch_tokens=run.batch_tokens, seed=run.seed)
            kept = _evaluated(asker, name, manager, run)
            if folder is not None:
                write_whole(_place(folder, name), json.dumps({"key": key, **kept}, indent=1, default=str) + "\n")
        lines += _lines(kept, run)
    return lines


def _told(model: str, name: str, run: HarnessRun) -> dict[str, Any]:
    files: dict[str, str] = {}
    if run.include is not None:
        texts = [path for path in sorted(run.include.rglob("*")) if path.suffix in (".yaml", ".yml", ".jsonl", ".json")]
        files = {str(path.relative_to(run.include)): path.read_text(errors="replace") for path in texts}
    return {
        "version": VERSION, "model": model, "task": name, "rows": run.rows, "shots": run.shots, "chat": run.chat,
        "seed": run.seed, "files": files,
    }  # fmt: skip


def _place(folder: Path, name: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.json"


def _kept(folder: Path | None, name: str, key: str) -> dict[str, Any] | None:
    """Return what an earlier call left of a task, where it asked for the same."""
    if folder is None or not _place(folder, name).is_file():
        return None
    try:
        told = json.loads(_place(folder, name).read_text(encoding="utf-8"))
    except ValueError:
        return None
    return told if isinstance(told, dict) and told.get("key") == key else None


def _evaluated(asker: Any, name: str, manager: Any, run: HarnessRun) -> dict[str, Any]:
    """Return the harness's results of a task or group: results, n-samples, n-shot, higher_is_better, samples."""
    from lm_eval import evaluator

    evaluator.get_git_commit_hash = lambda: None  # it would ask git about the folder that the user stands in
    try:
        found = evaluator.simple_evaluate(
            model=asker,
            tasks=[name],
            num_fewshot=run.shots,
            limit=run.rows,
            task_manager=manager,
            apply_chat_template=run.chat,
            bootstrap_iters=1000,
            random_seed=run.seed,
            numpy_random_seed=run.seed,
            torch_random_seed=run.seed,
            fewshot_random_seed=run.seed,
            confirm_run_unsafe_code=run.allow_code,
        )
    except MultituneError:
        raise
    except Exception as error:
        raise _told_in_our_words(error, name) from error
    assert found is not None  # only other processes of several get None
    return {key: found.get(key, {}) for key in ("results", "n-samples", "n-shot", "higher_is_better", "samples")}


def _told_in_our_words(error: Exception, name: str) -> MultituneError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "unsafe" in first:
        return MultituneError(
            f"The task '{name}' runs code that the model wrote, in this process and without walls.",
            f"--harness {name}",
            "Use multitune evaluate-code, or --allow-code inside a machine that may be lost.",
        )
    if isinstance(error, ConnectionError | OSError):
        return MultituneError(
            f"The data of task '{name}' cannot be loaded: {first}",
            f"--harness {name}",
            "Load it once where there is a network, or write the task for local files (--include FOLDER).",
        )
    return MultituneError(
        f"The harness cannot evaluate '{name}': {type(error).__name__}: {first}",
        f"--harness {name}",
        "Correct the task.",
    )


def _lines(told: Mapping[str, Any], run: HarnessRun) -> list[dict[str, Any]]:
    lines = []
    for task, metrics in told["results"].items():
        samples = told["n-samples"].get(task, {})
        shots = told["n-shot"].get(task, run.shots or 0)
        higher = told["higher_is_better"].get(task) or {}
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if metric in NO_METRICS or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            error = float(error) if isinstance(error, int | float) else None
            lines.append(
                {
                    "task": task,
                    "metric": metric if filtered in ("none", "") else f"{metric} ({filtered})",
                    "value": float(value),
                    "stderr": error,
                    "low": float(value) - 1.96 * (error or 0.0),
                    "high": float(value) + 1.96 * (error or 0.0),
                    "n": int(samples.get("effective", 0)),
                    "shots": int(shots),
                    "higher_is_better": higher.get(metric, True) is not False,
                }
            )
    return lines


def _onto_the_scoreboard(lines: Sequence[Mapping[str, Any]], model: str, run: HarnessRun, path: Path) -> None:
    from multitune.scoring.scoreboard import Scoreboard

    board = Scoreboard.load(path)
    board.append(
        {
            **{key: line[key] for key in ("task", "metric", "value", "low", "high", "n", "shots")},
            "run": "harness", "step": "score", "model": model, "split": "harness", "seed": run.seed,
            "shots_used": float(line["shots"]), "draw_seed": run.seed,
        }
        for line in lines
    )  # fmt: skip
    board.save(path)


def _import() -> None:
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise MultituneError(
            f"The harness needs {error.name}, which is not installed.",
            "--harness",
            "Install it with `pip install 'multitune[harness]'`.",
        ) from None


def _tasks(run: HarnessRun) -> tuple[list[str], Any]:
    """Return the names that are meant, and what finds them; the harness's own tasks are read only where needed.

    Raises:
        MultituneError: a name is unknown, the folder is none, or its files would run code.
    """
    from lm_eval.tasks import TaskManager

    if run.include is not None:
        _refuse_code(run.include, run.allow_code)
        manager = TaskManager(include_path=str(run.include), include_defaults=False)
        names = manager.match_tasks(list(run.tasks))
        if names and all(manager.match_tasks([task]) for task in run.tasks):
            return sorted(names), manager
    manager = TaskManager(include_path=None if run.include is None else str(run.include))
    for task in run.tasks:
        if not manager.match_tasks([task]):
            raise MultituneError(
                f"The harness has no task '{task}'.{nearest(task, manager.all_tasks)}",
                f"--harness {task}",
                "Name one of `lm_eval ls tasks`, or give the folder of your own task files: --include FOLDER.",
            )
    return sorted(manager.match_tasks(list(run.tasks))), manager


def _refuse_code(folder: Path, allowed: bool) -> None:
    if not folder.is_dir():
        raise MultituneError("This is no folder.", f"--include {folder}", "Name the folder of your task files.")
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        if not allowed and "!function" in path.read_text(encoding="utf-8", errors="replace"):
            raise MultituneError(
                "This task file calls Python code that lies beside it.",
                str(path),
                "Read that code, then add --allow-code; or take !function out.",
            )


# Our tasks as files of the harness


def export_tasks(file: Path, out: Path, rows: int | None = None) -> list[Path]:
    """Write every task of a file as a task of the harness: a YAML file and the scored rows as JSON lines.

    Args:
        file: a recipe, a suite, or a folder of Super-NaturalInstructions.
        out: folder; give it to the harness as ``--include_path``.
        rows: at most so many rows per task.

    Returns:
        The YAML files.

    Raises:
        MultituneError: a task is of a kind that the harness has not (regress), is a chat, or has no rows to score.
    """
    import yaml

    from multitune.scoring.score import ScoreConfig, scored_rows, scored_split
    from multitune.tasks.prompting import resolve

    tasks, folder = tasks_of(file)
    written = []
    for task in (resolve(task, folder) for task in tasks if scored_split(task, "test")):
        _, asked = scored_rows(task, folder, ScoreConfig(rows=rows))
        if task.kind == "regress" or asked[0].messages or task.continuation is not None:
            raise MultituneError(
                f"Task '{task.name}' is nothing that the harness has: choices, or texts, after plain prompts.",
                f"{file}, tasks.{task.name}",
                "Take it out of the file.",
            )
        name = f"{task.name}.jsonl"
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / name, "".join(json.dumps(_document(row), ensure_ascii=False) + "\n" for row in asked))
            write_whole(out / f"{task.name}.yaml", yaml.safe_dump(_config(task, out.resolve() / name), sort_keys=False))
        except OSError as error:
            raise disk_error(error, out) from error
        written.append(out / f"{task.name}.yaml")
    if not written:
        raise MultituneError("No task has test or validation rows.", str(file), "Give a task a test source.")
    return written


def _document(row: Prompted) -> dict[str, Any]:
    from multitune.mixing.encoding import plain_prompt

    prompt = plain_prompt(row)
    # a choice is joined to its prompt as in training: behind a space, unless the prompt ends with white space
    space = "" if not prompt or prompt[-1].isspace() else " "
    choices = [space + choice for choice in row.choices]
    return {"prompt": prompt, "target": space + row.target, "choices": choices, "label": row.label}


def _config(task: Task, data: Path) -> dict[str, Any]:
    """Return the harness's settings of a task; braces of Jinja name fields of `_document`."""
    config: dict[str, Any] = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
        "metadata": {"version": 1.0, "source": "multitune"},
    }
    if task.kind == "generate":
        return config | {
            "output_type": "generate_until",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": list(task.stop), "max_gen_toks": task.max_new_tokens, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
        }
    return config | {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
