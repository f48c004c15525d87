"""Python source as data: parsed without being run, its shape, and what it says.

Shape legend of trees: a shape is an integer that two nodes share exactly when their types and those of everything below
them are the same; names, values and operators do not count.
"""

from __future__ import annotations

import ast
import textwrap
import warnings


def parsed(text: str) -> ast.Module | None:
    """Parse source, as it stands or moved to the left margin; None where it is no Python. Docstrings are left out.

    Nothing is run. Strings that stand alone as statements do nothing and count as comments.
    """
    for source in dict.fromkeys((text, textwrap.dedent(text))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown escapes and the like, in text that a model wrote
                return _without_docstrings(ast.parse(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # zero bytes; nesting deeper than the parser
            continue
    return None


def same_code(prediction: str, reference: str) -> float:
    """1 when two texts parse to the same syntax tree: layout, comments, docstrings and quotes do not count.

    Where the reference is no Python, 1 when the texts are equal but for white space.
    """
    tree, right = parsed(prediction), parsed(reference)
    if right is None:
        return float(prediction.split() == reference.split())
    try:
        return float(tree is not None and ast.dump(tree) == ast.dump(right))
    except RecursionError:
        return float(prediction.strip() == reference.strip())


def shapes(tree: ast.AST, known: dict[tuple[object, ...], int]) -> list[int]:
    """Return the shapes of all sub-trees that have something in them; single names, numbers and operators have not.

    Args:
        tree: of source.
        known: the shapes met so far, to which new ones are added; trees that are compared share it.
    """
    found: list[int] = []

    def shape(label: str, parts: list[int], counts: bool) -> int:
        number = known.setdefault((label, *parts), len(known))
        if counts:
            found.append(number)
        return number

    def visit(node: ast.AST) -> int:
        parts = []
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                inner = [visit(one) for one in value if isinstance(one, ast.AST) and not isinstance(one, _UNSEEN)]
                parts += [shape(BLOCKS[name], inner, True)] if name in BLOCKS and inner else inner
            elif isinstance(value, ast.AST) and not isinstance(value, _UNSEEN):
                parts.append(visit(value))
        return shape(type(node).__name__, parts, bool(parts) or not _is_leaf(node))

    visit(tree)
    return found


BLOCKS = {"body": "block", "orelse": "else", "finalbody": "finally"}
"""Lists of statements are sub-trees of their own."""

_UNSEEN = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


def _is_leaf(node: ast.AST) -> bool:
    """Whether a node without parts is a mere word: a name, a parameter or a number; a string is more than that."""
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, (str, bytes))
    return isinstance(node, (ast.Name, ast.arg, ast.alias))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        for name in BLOCKS:
            body = getattr(node, name, None)
            if isinstance(body, list):
                body[:] = [one for one in body if not _is_lone_string(one)]
    return tree


def _is_lone_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
