"""Source is compared by what it says, and never run."""

from __future__ import annotations

import pytest

from multitune.tasks.metrics import metric
from multitune.tasks.python_source import parsed, same_code, shapes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f( 'a' )", 'f("a")'),
        ("x=1 # why", "x = 1"),
        ("def f():\n  'says what'\n  return 1", "def f():\n    return 1"),
        ("    return x", "return x"),
        ("(a)", "a"),
    ],
)
def test_layout_does_not_count(one, other):
    assert same_code(one, other) == 1.0


@pytest.mark.parametrize("other", ["f(b)", "g(a)", "f(a, a)", "f(a", ""])
def test_names_and_structure_do(other):
    assert same_code(other, "f(a)") == 0.0


def test_what_is_no_python_is_compared_as_text():
    assert same_code("ls  -l", "ls -l") == 1.0
    assert same_code("ls -a", "ls -l |") == 0.0
    assert same_code("-" * 100_000 + "1", "1") == 0.0


def test_the_metric_is_the_share_of_matches():
    assert metric("ast_match").score(["f( 1 )", "f(2)"], ["f(1)", "f(3)"]) == 0.5


def test_unknown_escapes_warn_nobody():
    assert parsed("'\\d'") is not None


def test_shapes_forget_names_values_and_operators():
    known = {}
    assert shapes(parsed("a = b + 1"), known) == shapes(parsed("x = y * 2"), known)
    assert shapes(parsed("a = b + 1"), known) != shapes(parsed("a = b + f(1)"), known)
    assert shapes(parsed("a < 1"), known) == shapes(parsed("a > 2"), known)


def test_only_sub_trees_with_something_in_them_count():
    # module, block, assignment, sum; not the three leaves
    assert len(shapes(parsed("a = b + 1"), {})) == 4
