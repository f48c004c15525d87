"""Where the values of a piece of Python come from, as CodeBLEU compares it (arXiv:2009.10297, section 3.3).

Every word of the source, a name or a constant, is one place. A place takes its value from other places: a name that is
read from wherever it was written last ("comesFrom"), a name that is assigned from all words on the right
("computedFrom"). Branches keep what either of them wrote; bodies of loops are gone through twice, so that what one
round leaves reaches the next. There are no scopes: a function's names are those of the module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Position = tuple[int, int]
Writers = dict[str, frozenset[Position]]
Flow = tuple[str, str, tuple[str, ...]]
"""What takes a value, how, and from what; names in the order of their first use: var_0, var_1..."""


@dataclass(frozen=True, slots=True)
class Word:
    """A name or a constant where it stands; a constant is never written."""

    position: Position
    text: str
    is_name: bool


@dataclass(frozen=True, slots=True)
class Edge:
    """One place and where its value comes from; ``sources`` are empty where nothing is known."""

    word: Word
    relation: str
    names: tuple[str, ...]
    sources: tuple[Position, ...]


def data_flow(tree: ast.Module) -> list[Flow]:
    """Return the flows of a module in the order of the source, one per place that takes part in any."""
    edges = sorted(_walk(tree, {}), key=lambda edge: edge.word.position)
    used = {edge.word.position for edge in edges if edge.sources} | {at for edge in edges for at in edge.sources}
    places: dict[Position, Edge] = {}
    for edge in edges:
        if edge.word.position in used:
            places[edge.word.position] = _joined(places.get(edge.word.position), edge)
    names: dict[str, str] = {}
    flows = []
    for edge in places.values():
        for name in (*edge.names, edge.word.text):
            names.setdefault(name, f"var_{len(names)}")
        flows.append((names[edge.word.text], edge.relation, tuple(names[name] for name in edge.names)))
    return flows


def _joined(first: Edge | None, second: Edge) -> Edge:
    """What is known of one place from two visits: the relation of the first, the sources of both."""
    if first is None:
        return second
    names = tuple(dict.fromkeys((*first.names, *second.names)))
    return Edge(first.word, first.relation, names, tuple(sorted({*first.sources, *second.sources})))


def _walk(node: ast.AST | Word, writers: Writers) -> list[Edge]:
    """Return the edges of a node; ``writers`` says who wrote every name last, before and, changed here, after it."""
    match node:
        case Word():
            return [_read(node, writers)]
        case ast.Assign(targets=targets, value=value):
            return _assign(targets, value, writers)
        case ast.AugAssign(target=target, value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            return _assign([target], value, writers)
        case ast.AnnAssign():
            return []
        case ast.arguments():
            return _parameters(node, writers)
        case ast.If():
            return _branches(node, writers)
        case ast.For() | ast.AsyncFor():
            rounds = [_assign([node.target], node.iter, writers) + _in_order(node.body, writers) for _ in range(2)]
            return rounds[0] + rounds[1] + _in_order(node.orelse, writers)
        case ast.While():
            return _in_order([*_parts(node), *_parts(node)], writers)
        case ast.comprehension(target=target, iter=iterable, ifs=conditions):
            return _assign([target], iterable, writers) + _in_order(conditions, writers)
        case _:
            return _in_order(_parts(node), writers)


def _read(word: Word, writers: Writers) -> Edge:
    if word.text in writers:
        return Edge(word, "comesFrom", (word.text,), tuple(sorted(writers[word.text])))
    if word.is_name:
        writers[word.text] = frozenset([word.position])
    return Edge(word, "comesFrom", (), ())


def _in_order(nodes: Iterable[ast.AST | Word], writers: Writers) -> list[Edge]:
    return [edge for node in nodes for edge in _walk(node, writers)]


def _assign(targets: Sequence[ast.expr], value: ast.expr, writers: Writers) -> list[Edge]:
    """Every word of a target is computed from all words on its right; a, b = x, y is taken apart."""
    edges = _walk(value, writers)
    for one, right in [pair for target in targets for pair in _pairs(target, value)]:
        sources = words(right)
        names, places = tuple(word.text for word in sources), tuple(word.position for word in sources)
        for word in words(one):
            edges.append(Edge(word, "computedFrom", names, places))
            writers[word.text] = frozenset([word.position])
    return edges


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    pattern = (ast.Tuple, ast.List)
    if isinstance(target, pattern) and isinstance(value, pattern) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _parameters(node: ast.arguments, writers: Writers) -> list[Edge]:
    """Parameters in order; one with a default comes from every word of it."""
    positional = [*node.posonlyargs, *node.args]
    defaults = [None] * (len(positional) - len(node.defaults)) + node.defaults
    with_defaults = [*zip(positional, defaults, strict=True), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
    edges: list[Edge] = []
    for parameter, default in [*with_defaults, (node.vararg, None), (node.kwarg, None)]:
        if parameter is None:
            continue
        if default is None:
            edges += _in_order(_parts(parameter), writers)
            continue
        name = Word((parameter.lineno, parameter.col_offset), parameter.arg, True)
        edges += _in_order([*_positioned(parameter), default], writers)
        edges += [Edge(name, "comesFrom", (word.text,), (word.position,)) for word in words(default)]
        writers[name.text] = frozenset([name.position])
    return edges


def _branches(node: ast.If, writers: Writers) -> list[Edge]:
    other = dict(writers)
    edges = _in_order([node.test, *node.body], writers) + _in_order(node.orelse, other)
    for name, places in other.items():
        writers[name] = writers.get(name, frozenset()) | places
    return edges


def words(node: ast.AST | Word) -> list[Word]:
    """Return all words below a node, in the order of the source."""
    if isinstance(node, Word):
        return [node]
    return sorted((word for part in _parts(node) for word in words(part)), key=lambda word: word.position)


def _parts(node: ast.AST) -> list[ast.AST | Word]:
    """Return what a node consists of, in the order of the source; comprehensions before what is made of them."""
    own = _own_word(node)
    if isinstance(node, (ast.Name, ast.Constant, ast.JoinedStr)):
        return [own] if own is not None else []  # a string is one word, whatever is put into it
    inner: list[ast.AST | Word] = [*_positioned(node)]
    if own is not None:
        inner.append(own)
    return sorted(inner, key=lambda part: (not isinstance(part, ast.comprehension), _position(part)))


def _own_word(node: ast.AST) -> Word | None:
    """The word that a node adds to those below it: the name of an attribute, a function, a parameter..."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(name=name):
            return Word((node.lineno, node.col_offset), name, True)
        case ast.keyword(arg=str(name)):
            return Word((node.lineno, node.col_offset), name, True)
        case ast.Attribute(attr=name):
            end = (node.end_lineno or node.lineno, (node.end_col_offset or node.col_offset) - len(name.encode()))
            return Word(end, name, True)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return Word((node.lineno, node.col_offset + 1), name, True)  # behind "def", before the parameters
        case ast.Constant() | ast.JoinedStr():
            return Word((node.lineno, node.col_offset), ast.unparse(node), False)
        case _:
            return None


def _positioned(node: ast.AST) -> list[ast.AST]:
    """The children that stand somewhere; of those that do not (withitem, match_case) their children."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.arguments, ast.comprehension)) or hasattr(child, "lineno"):
            found.append(child)
        else:
            found += _positioned(child)
    return found


def _position(part: ast.AST | Word) -> Position:
    if isinstance(part, Word):
        return part.position
    if isinstance(part, ast.comprehension):
        return part.target.lineno, part.target.col_offset
    if isinstance(part, ast.arguments):
        first = next(iter([*part.posonlyargs, *part.args, *part.kwonlyargs, part.vararg, part.kwarg]), None)
        return (0, 0) if first is None else (first.lineno, first.col_offset)
    return part.lineno, part.col_offset  # type: ignore[attr-defined]
