"""The share of outputs in a task's format, and the mean over tasks: invariant 7 of ProMoT, to the digit."""

from __future__ import annotations

import pytest

from multitune.scoring.specialisation import format_rate, normalised_average


def test_the_rate_counts_labels_among_outputs():
    assert format_rate(["True", "False", "Paris", "True"], ["True", "False"]) == 0.75
    assert format_rate([" True\n"], {" True", " False"}) == 1.0
    assert format_rate(["Truely", "true", ""], ["True", "False"]) == 0.0
    with pytest.raises(ValueError, match="no outputs"):
        format_rate([], ["True"])


def test_the_normalised_average_is_the_plain_mean():
    assert normalised_average([10, 20, 30, 40, 50, 60, 70, 80]) == 45
    with pytest.raises(ValueError, match="between 0 and 100, not 101"):
        normalised_average([50, 101])
