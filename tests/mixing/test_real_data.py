"""The way from real files to micro-batches; skipped where the shared data folder is absent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from multitune.mixing.batches import TrainingBatches
from multitune.mixing.mixture import Mixture
from multitune.mixing.policies import Temperature
from multitune.mixing.tokens import tokenise
from multitune.tasks.prompting import resolve
from multitune.tasks.task import Task

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data folder {DATA} is absent")


def test_six_real_tasks_become_packed_rows_with_every_example_once(tmp_path, gpt):
    pair = {"prompt": "{{ text }}\nLabel:", "target": "{{ label }}"}
    settings = dict.fromkeys(("sst2", "subj", "tweet_emotion", "tweet_offensive"), pair)
    settings |= {name: {"prompt": "{{ question }}", "target": "{{ answer }}"} for name in ("gsm8k", "asdiv_a")}
    tables = []
    for name, templates in settings.items():
        task = resolve(Task(name=name, train={"path": f"{name}/train.jsonl", "rows": 300}, **templates), DATA)
        tables.append(tokenise(task, "train", gpt, "causal", DATA, max_length=512, cache=tmp_path))
    assert [len(table) for table in tables] == [300] * 6
    mixture = Mixture({table.task: len(table) for table in tables}, Temperature(), seed=0, total=1800)
    batches = TrainingBatches(
        tables,
        mixture,
        form="causal",
        pack=True,
        row_length=512,
        micro_batch_size=8,
        pad_token_id=gpt.pad_token_id,
        seed=0,
    )
    assert batches.fill > 0.98
    seen: Counter[int] = Counter()
    for index in range(len(batches)):
        batch = batches[index]
        starts = (batch["position_ids"] == 0) & (batch["task_ids"] >= 0)
        seen.update(batch["example_ids"][starts].tolist())
        assert not torch.isin(batch["labels"][starts], batch["input_ids"]).any()
    assert seen == Counter(range(1800))
    assert batches.repeats_at(len(batches) - 1) == {table.task: 1.0 for table in tables}
