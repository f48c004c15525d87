"""The guide's program runs as it stands, on small models and rows."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

GUIDE = Path(__file__).parents[3] / "docs" / "learned-merging.md"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A base, two models tuned from it, and rows that they label."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    base = BertForSequenceClassification(config).eval()
    base.save_pretrained(tmp_path / "base")
    for name in ("reviews", "news"):
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in tuned.bert.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
            ids = torch.randint(4, 30, (64, 5))
            save_file({"input_ids": ids, "labels": tuned(ids).logits.argmax(-1)}, tmp_path / f"{name}.safetensors")
        tuned.save_pretrained(tmp_path / f"tuned-{name}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_program_of_the_guide_runs(folders):
    program = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL))
    (folders / "program.py").write_text(program, encoding="utf-8")
    made = runpy.run_path(str(folders / "program.py"))
    merged = BertForSequenceClassification.from_pretrained("merged-by-the-engine").eval()
    expected = dict(made["learned"].tensors())
    assert made["many"].parameters == 2 * 80 * len(expected)
    for name, tensor in expected.items():
        assert merged.state_dict()[name] == pytest.approx(tensor, abs=1e-6)
    assert (folders / "merged" / "model.safetensors").is_file()
    assert 1 < len(made["found"].scores) <= 40
