"""What the report says of a fused model's coefficients, on numbers that can be counted by hand."""

from __future__ import annotations

import json

import pytest

from multitune.reporting.coefficients import coefficients
from multitune.reporting.run_folder import Run


@pytest.fixture
def run(tmp_path):
    """Makes a run whose fused model has the given coefficients on the task sums."""

    def make(*texts: list[list[float]]) -> Run:
        folder = tmp_path / "steps" / "fused" / "coefficients"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"prompt": "", "tokens": [""] * len(text), "experts": ["a", "b"], "alphas": text} for text in texts]
        for task in ("sums", "unscored"):
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        scores = [{"step": "fused", "task": "sums"}]
        return Run(tmp_path, {}, "", {}, scores, {}, {})

    return make


def test_shares_and_means_are_over_tokens(run):
    (one,) = coefficients(run([[1.0, 0.0], [0.0, 0.5], [0.0, 1.5]], [[0.0, 0.0]]))
    assert (one.node, one.task, one.texts, one.tokens) == ("fused", "sums", 2, 4)
    assert [(lead.expert, lead.share, lead.mean_alpha) for lead in one.leads] == [("a", 0.25, 1.0), ("b", 0.5, 1.0)]
    assert one.alone == 0.25
    assert one.panel is not None
    assert [line.name for line in one.panel.lines] == ["a", "b"]
    assert "a from 0.5 to 0" in one.panel.summary
    assert "tokens 1 to 3" in one.panel.summary


def test_one_position_and_negative_coefficients_have_no_chart(run):
    assert coefficients(run([[1.0, 0.0]], [[0.0, 2.0]]))[0].panel is None
    (one,) = coefficients(run([[-1.0, 0.0], [0.0, 0.0]]))
    assert one.panel is None
    assert one.alone == 0.5


def test_a_run_without_fusion_has_none(run):
    assert coefficients(run()) == ()
