"""Flows of small programs, written out."""

from __future__ import annotations

import ast

import pytest

from multitune.tasks.data_flow import data_flow


def flows(source: str):
    return data_flow(ast.parse(source))


def test_names_come_from_where_they_were_written_last():
    # x from 1; then y from x and 2
    assert flows("x = 1\ny = x + 2") == [
        ("var_1", "computedFrom", ("var_0",)),
        ("var_0", "comesFrom", ()),
        ("var_3", "computedFrom", ("var_1", "var_2")),
        ("var_1", "comesFrom", ("var_1",)),
        ("var_2", "comesFrom", ()),
    ]


def test_names_do_not_matter():
    assert flows("def add(a, b): return a + b") == flows("def mean(x, y): return x + y")
    assert flows("a = 1\nb = a") != flows("a = 1\nb = c")


def test_words_that_nothing_comes_from_are_left_out():
    assert flows("import os\nprint('a')") == []


def test_a_branch_keeps_what_either_side_wrote():
    with_else = flows("if c:\n  x = 1\nelse:\n  x = 2\ny = x")
    assert ("computedFrom", 1) in [(relation, len(sources)) for _, relation, sources in with_else]
    read = data_flow(ast.parse("x = 0\nif c:\n  x = 1\ny = x"))
    assert read[-1] == ("var_1", "comesFrom", ("var_1",))


def test_what_a_round_of_a_loop_leaves_reaches_the_next():
    once = flows("t = 0\nu = t\nt = u")
    looped = flows("t = 0\nfor i in r:\n  u = t\n  t = u")
    assert len(looped) > len(once)
    assert flows("while t:\n  t = u\n  u = t")[0] == ("var_0", "comesFrom", ("var_0",))  # of the second round


@pytest.mark.parametrize(
    "source",
    [
        "async def f(a, /, b: int = 1, *c, d=2, **e): await a.b[c](x=d, **e)",
        "class A(B):\n  @p\n  def f(self): return {k: v for k, v in self.x if k}",
        "with open(a) as f, g: pass\ntry: x\nexcept E as e: raise\nfinally: y",
        "match a:\n  case [b, *c] if d: e = b\n  case {'k': f, **g}: pass\n  case A(h=1) | None: pass",
        "x: int = 1\nx: str\na, (b, *c) = d = e\ndel a\nglobal b\nlambda q=1: q\nf'{a!r:>{b}}' 'c'\n(n := 10)",
        "a = b, c = d\na[i].j = k if l else m\nfor a, b in c, d: pass\nelse: e\nx += x",
    ],
)
def test_every_construct_has_a_flow_or_none(source):
    found = flows(source)
    assert found == flows(source)
    assert all(relation in ("comesFrom", "computedFrom") for _, relation, _ in found)
