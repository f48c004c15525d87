from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from multitune.errors import MultituneError
from multitune.mixing.mixture import Mixture
from multitune.mixing.policies import (
    Annealed,
    Capped,
    Equal,
    Group,
    Grouped,
    MixtureConfig,
    Proportional,
    Replay,
    Sequential,
    Temperature,
    Weights,
    check_names,
    cumulative_shares,
    share_table,
    shares,
)

NAMES = ("a", "b", "c")
ROWS = np.array([100, 300, 600])
POLICIES = [
    (Proportional(), [0.1, 0.3, 0.6]),
    (Equal(), [1 / 3, 1 / 3, 1 / 3]),
    (Temperature(temperature=1), [0.1, 0.3, 0.6]),
    (Temperature(temperature=2), [0.1929928, 0.3342733, 0.4727339]),
    (Capped(cap=200), [0.2, 0.4, 0.4]),
    (Weights(weights={"c": 1, "a": 3, "b": 0}), [0.75, 0.0, 0.25]),
    (Replay(earlier=("a", "b"), share=0.2), [0.05, 0.15, 0.8]),
    (Replay(earlier=("c",)), [0.225, 0.675, 0.1]),
]


@pytest.mark.parametrize(("config", "expected"), POLICIES)
def test_steady_policies_give_their_worked_shares(config, expected):
    share_PT = shares(config, ROWS, NAMES, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(share_PT, [expected] * 3, atol=1e-7)


def test_a_very_hot_temperature_is_nearly_equal():
    share_T = shares(Temperature(temperature=1e9), ROWS, NAMES, np.zeros(1))[0]
    np.testing.assert_allclose(share_T, 1 / 3, atol=1e-8)


def test_annealing_is_linear_between_its_ends():
    config = Annealed(start=Proportional(), end=Equal())
    share_PT = shares(config, ROWS, NAMES, np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(share_PT[0], [0.1, 0.3, 0.6])
    np.testing.assert_allclose(share_PT[2], 1 / 3)
    np.testing.assert_allclose(share_PT[1], (share_PT[0] + share_PT[2]) / 2)


def test_sequential_runs_one_task_at_a_time_for_as_long_as_its_rows_last():
    config = Sequential(order=("c", "a", "b"))
    share_PT = shares(config, ROWS, NAMES, np.array([0.0, 0.59, 0.61, 0.69, 0.71, 1.0]))
    np.testing.assert_array_equal(share_PT.argmax(axis=1), [2, 2, 0, 0, 1, 1])


ANY_POLICY = st.one_of(
    st.sampled_from([config for config, _ in POLICIES]),
    st.sampled_from([Sequential(), Sequential(order=("b", "c", "a")), Annealed(start=Capped(cap=5), end=Equal())]),
)


@given(config=ANY_POLICY, rows=st.lists(st.integers(1, 10**9), min_size=3, max_size=3))
def test_shares_sum_to_one_and_integrate_to_the_cumulative_shares(config, rows):
    progress = np.linspace(0, 1, 1001)
    share_PT = shares(config, np.array(rows), NAMES, progress)
    total_PT = cumulative_shares(config, np.array(rows), NAMES, progress)
    np.testing.assert_allclose(share_PT.sum(axis=1), 1)
    np.testing.assert_allclose(total_PT.sum(axis=1), progress, atol=1e-12)
    trapezoids = np.cumsum((share_PT[1:] + share_PT[:-1]) / 2, axis=0) / 1000
    np.testing.assert_allclose(total_PT[1:], trapezoids, atol=2e-3)  # a sequential task changes within one step


def test_the_share_table_counts_tokens_as_well_as_examples():
    table = share_table(Proportional(), {"a": 100, "b": 300}, {"a": 90.0, "b": 10.0})
    assert [row.task for row in table] == ["a", "b"]
    assert [row.examples for row in table] == pytest.approx([0.25, 0.75])
    assert [row.tokens for row in table] == pytest.approx([0.75, 0.25])


def test_the_share_table_shows_where_annealing_starts_and_ends():
    a, b = share_table(Annealed(start=Proportional(), end=Equal()), {"a": 100, "b": 300}, {"a": 1.0, "b": 1.0})
    assert (a.examples_at_start, a.examples, a.examples_at_end) == pytest.approx((0.25, 0.375, 0.5))
    assert (b.examples_at_start, b.examples, b.examples_at_end) == pytest.approx((0.75, 0.625, 0.5))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Weights(weights={"a": 1, "bb": 1, "c": 1}), "no task 'bb'"),
        (Weights(weights={"a": 1, "b": 1}), "'c' is missing"),
        (Weights(weights={"a": 0, "b": 0, "c": 0}), "All weights are 0"),
        (Sequential(order=("a", "b")), "'c' is missing"),
        (Sequential(order=("a", "b", "c", "a")), "'a' is listed twice"),
        (Replay(earlier=("a", "d")), "no task 'd'"),
        (Replay(earlier=("a", "a")), "'a' is listed twice"),
        (Replay(earlier=NAMES), "All tasks are earlier ones"),
        (Annealed(start=Equal(), end=Weights(weights={"x": 1})), "no task 'x'"),
    ],
)
def test_policies_that_do_not_fit_the_tasks_are_refused(config, words):
    with pytest.raises(MultituneError, match=words):
        check_names(config, NAMES)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(MultituneError, match="Did you mean 'sst2'"):
        check_names(Weights(weights={"sst_2": 1}), ["sst2", "gsm8k"])


def test_a_task_without_rows_is_refused():
    with pytest.raises(MultituneError, match="'b' has no rows"):
        shares(Equal(), np.array([1, 0]), ("a", "b"), np.zeros(1))


def test_configs_are_chosen_by_their_policy_and_refuse_unknown_keys():
    adapter = TypeAdapter(MixtureConfig)
    assert adapter.validate_python({"policy": "temperature", "temperature": 3}) == Temperature(temperature=3)
    annealed = adapter.validate_python({"policy": "annealed", "end": {"policy": "capped", "cap": 7}})
    assert annealed == Annealed(start=Proportional(), end=Capped(cap=7))
    for wrong in ({"policy": "equal", "temperature": 2}, {"policy": "capped"}, {"policy": "capped", "cap": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def grouped(cap=None, **groups):
    return Grouped(policy="grouped", cap=cap, groups={name: Group(**group) for name, group in groups.items()})


@pytest.mark.parametrize(
    "cap, expected",
    [
        (1000, [10 / 2010, 1000 / 2010, 1000 / 2010]),
        (None, [10 / 101010, 1000 / 101010, 100000 / 101010]),
        (1, [1 / 3] * 3),
    ],
)
def test_one_group_is_sampled_in_proportion_to_sizes_up_to_the_cap(cap, expected):
    config = grouped(cap, all={"tasks": ("*",), "share": 1})
    rows, names = np.array([10, 1000, 100000]), ["a", "b", "c"]
    assert shares(config, rows, names, np.zeros(1))[0] == pytest.approx(expected)


def test_resampling_ratios_of_the_card():
    rows = np.array([100, 10000])
    share = shares(grouped(1000, all={"tasks": ("a", "b"), "share": 1}), rows, ["a", "b"], np.zeros(1))[0]
    assert share == pytest.approx([1 / 11, 10 / 11])
    assert share * rows.sum() / rows == pytest.approx([9.1818, 0.9182], abs=1e-4)


def test_shares_nest_benchmarks_and_auxiliary_groups():
    config = grouped(
        100,
        niv2={"tasks": ("niv2_*",), "share": 25},
        p3={"tasks": ("p3",), "share": 75},
        text={"tasks": ("pile",), "of_all": 0.05},
    )
    names, rows = ["niv2_a", "pile", "niv2_b", "p3"], {"niv2_a": 50, "pile": 10_000, "niv2_b": 5000, "p3": 7}
    expected = [0.95 * 0.25 * 50 / 150, 0.05, 0.95 * 0.25 * 100 / 150, 0.95 * 0.75]
    assert shares(config, np.array(list(rows.values())), names, np.zeros(1))[0] == pytest.approx(expected)
    mixture = Mixture(rows, config, seed=0, total=100_000)
    counts = np.bincount(mixture.draw(0, 100_000)[:, 0], minlength=4)
    assert (
        np.abs(counts - 100_000 * np.array(expected)).max() <= 1
    )  # exact, where independent draws would be within 3 sigma
    drawn = mixture.draw(0, 100_000)
    of_b = drawn[drawn[:, 0] == 2]  # 15,833 draws of 5,000 rows: every row three times before one comes a fourth
    times = np.bincount(of_b[:, 1], minlength=5000)
    assert times.min() == 3 and times.max() == 4


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"one": {"tasks": ("a", "b"), "share": 1}, "none": {"tasks": ("x*",), "share": 1}}, "the group 'none' asks"),
        ({"one": {"tasks": ("a", "b"), "share": 1}, "two": {"tasks": ("b",), "share": 1}}, "'one' and 'two'"),
        ({"one": {"tasks": ("a",), "share": 1}}, "'b' is in no group"),
        ({"one": {"tasks": ("a", "b"), "share": 0}}, "All shares are 0"),
        ({"one": {"tasks": ("a",), "of_all": 0.5}, "two": {"tasks": ("b",), "of_all": 0.2}}, "sum to 0.7"),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit_are_told(groups, message):
    with pytest.raises(MultituneError, match=message):
        check_names(grouped(**groups), ["a", "b"])


def test_auxiliary_groups_leave_something():
    config = grouped(
        a={"tasks": ("a",), "of_all": 0.6}, b={"tasks": ("b",), "of_all": 0.4}, c={"tasks": ("c",), "share": 1}
    )
    with pytest.raises(MultituneError, match="leaves nothing for the others"):
        check_names(config, ["a", "b", "c"])


@pytest.mark.parametrize("group", [{"tasks": ("a",)}, {"tasks": ("a",), "share": 1, "of_all": 0.1}])
def test_a_group_has_one_kind_of_share(group):
    with pytest.raises(ValueError, match="either a share"):
        Group(**group)
