"""Write the suite of an instruction-tuning recipe: Super-NaturalInstructions, and gsm8k where it lies beside it.

    python examples/instructions/make_suite.py /my/data

reads `/my/data/superni/tasks.jsonl` (one line per task: `task`, `category`, `definition`) and writes `suite.yaml`
beside this file. Each task has a folder `/my/data/superni/<task>` with `train.jsonl` and `test.jsonl` of `input` and
`output`; `/my/data/gsm8k` holds the same two files of `question` and `answer`. The task's definition becomes part of
the prompt.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import yaml

SUITE = Path(__file__).parent / "suite.yaml"


def literal(text: str) -> str:
    """The text as a template that renders to itself, also when it holds braces."""
    return "{{ " + json.dumps(text) + " }}" if "{" in text else text


def instruction_task(line: dict[str, Any], data: Path, held_out: set[str]) -> dict[str, Any]:
    """One Super-NaturalInstructions task as a generation task with its definition in front."""
    folder = data / "superni" / line["task"]
    return {
        "train": str(folder / "train.jsonl"),
        "test": str(folder / "test.jsonl"),
        "kind": "generate",
        "prompt": literal(line["definition"]) + "\n\nInput: {{ input }}\nOutput:",
        "target": "{{ output }}",
        "metrics": ["rouge_l", "exact_match"],
        "tags": {"category": line["category"]},
        "held_out": line["category"] in held_out,
    }


def reasoning_task(data: Path) -> dict[str, Any]:
    """gsm8k: write the steps, then the number; scored by the number."""
    return {
        "train": str(data / "gsm8k" / "train.jsonl"),
        "test": str(data / "gsm8k" / "test.jsonl"),
        "kind": "generate",
        "prompt": "Question: {{ question }}\nAnswer:",
        "target": "{{ answer }}",
        "metrics": ["numeric_match"],
        "tags": {"category": "arithmetic reasoning"},
        "max_new_tokens": 256,
    }


def make_suite(data: Path, held_out: set[str]) -> dict[str, Any]:
    """All tasks of the data folder by name; tasks of the held-out categories are scored and never trained on."""
    lines = [json.loads(line) for line in (data / "superni" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    tasks = {line["task"]: instruction_task(line, data, held_out) for line in lines}
    if (data / "gsm8k" / "train.jsonl").exists():
        tasks["gsm8k"] = reasoning_task(data)
    return {"tasks": tasks}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write suite.yaml for examples/instructions/recipe.yaml.")
    parser.add_argument("data", type=Path, help="the folder that holds superni/ and, if you like, gsm8k/")
    parser.add_argument("--out", type=Path, default=SUITE, help="the suite file (default: beside this script)")
    parser.add_argument(
        "--held-out",
        nargs="*",
        default=["textual entailment", "word analogy"],
        help="categories that are scored and never trained on",
    )
    options = parser.parse_args()
    suite = make_suite(options.data.resolve(), set(options.held_out))
    part = options.out.with_name(options.out.name + ".part")
    part.write_text(yaml.safe_dump(suite, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(part, options.out)
    held = sum(task["held_out"] for task in suite["tasks"].values() if "held_out" in task)
    print(f"{options.out}: {len(suite['tasks'])} tasks, {held} of them held out")


if __name__ == "__main__":
    main()
