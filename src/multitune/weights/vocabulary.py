"""Vocabularies that differ: which row of each model's embedding belongs to which row of the result's.

Rows are matched by token, through the tokenizer files; torch is not loaded, and no tokenizer is built.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.weights.checkpoints import Checkpoint

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger("multitune.weights")


@dataclass(frozen=True)
class Vocabulary:
    """How the rows of token tables are matched.

    Attributes:
        rows: of the result's tables.
        maps: folder -> for each row of the result that model's row, -1 where it has none.
        added: tokens that the leader's tokenizer lacks: (token, id, whether it is special).
    """

    rows: int
    maps: dict[Path, np.ndarray]
    added: list[tuple[str, int, bool]]


def reconcile(
    rule: str, leader: Checkpoint, models: Sequence[Checkpoint], rows: Mapping[Path, int]
) -> Vocabulary | None:
    """Match the tokens of models to the leader's; None where all vocabularies are one.

    A token that a model lacks moves nothing there (its row counts as the leader's); one that the leader lacks
    (``union``) starts from the mean of the models that have it. Rows without a token (padding) are matched by number.

    Args:
        rule: ``refuse``, ``base`` or ``union``.
        leader: whose ids the result keeps.
        models: whole models, the leader perhaps among them.
        rows: of every checkpoint's token embedding.

    Raises:
        MultituneError: vocabularies differ under ``refuse``, or a tokenizer that is needed is missing.
    """
    import numpy as np

    told = {each.folder: tokens_of(each.folder) for each in [leader, *models]}
    ours = told[leader.folder]
    differing = [
        each
        for each in models
        if rows[each.folder] != rows[leader.folder]
        or (None not in (ours, told[each.folder]) and told[each.folder] != ours)
        or (None in (ours, told[each.folder]) and _sentencepiece(each.folder) != _sentencepiece(leader.folder))
    ]
    if not differing:
        return None
    if rule == "refuse":
        raise _refusal(leader, differing[0], told, rows)
    for each in [leader, *models]:
        if told[each.folder] is None:
            raise MultituneError(
                "The vocabularies differ, and this model has no tokenizer.json or vocab.json to match them by.",
                str(each.folder),
                "Copy its tokenizer into the folder.",
            )
    assert ours is not None
    added: list[tuple[str, int, bool]] = []
    if rule == "union":
        free = max(ours.values(), default=-1) + 1
        known = set(ours)
        for each in models:
            special = _special_tokens(each.folder)
            theirs = told[each.folder] or {}
            for token in sorted(theirs.keys() - known, key=lambda token: (theirs[token], token)):
                added.append((token, free + len(added), token in special))
                known.add(token)
        ordinary = [token for token, _, _ in added if not any(token in _added_tokens(each.folder) for each in models)]
        if ordinary:
            logger.warning(
                "%d tokens, %r for one, become added tokens of the result: they are matched first, inside words too, "
                "so that ordinary text may be cut otherwise than before; vocabulary: base leaves them out",
                len(ordinary),
                ordinary[0],
            )
    ids = ours | {token: number for token, number, _ in added}
    size = max(rows[leader.folder], max(ids.values(), default=-1) + 1)
    unnamed = sorted(set(range(size)) - set(ids.values()))
    maps = {}
    for each in [leader, *models]:
        theirs, count = told[each.folder] or {}, rows[each.folder]
        own = np.full(size, -1, np.int64)
        for token, number in ids.items():
            if theirs.get(token, count) < count:
                own[number] = theirs[token]
        taken = set(theirs.values())
        for number in unnamed:
            if number < count and number not in taken:
                own[number] = number
        maps[each.folder] = own
    return Vocabulary(size, maps, added)


def _refusal(
    leader: Checkpoint, other: Checkpoint, told: Mapping[Path, dict[str, int] | None], rows: Mapping[Path, int]
) -> MultituneError:
    ours, theirs = told[leader.folder], told[other.folder]
    what = f"{rows[other.folder]} rows against {rows[leader.folder]}"
    if ours is not None and theirs is not None:
        count = len(set(ours.items()) ^ set(theirs.items()))
        example = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]), default=("", 0))
        what += f", {count} pairs of token and id are not in both, {example[0]!r} ({example[1]}) first"
    return MultituneError(
        f"The vocabularies differ: {what}.",
        f"{other.folder} against {leader.folder}",
        "Say how to resolve it: vocabulary: base keeps the base's tokens, union keeps all; both match rows by token.",
    )


def tokens_of(folder: Path) -> dict[str, int] | None:
    """Return token -> id from tokenizer.json, else from vocab.json and added_tokens.json; None without either."""
    whole = _read(folder / "tokenizer.json")
    if isinstance(whole, dict) and isinstance(whole.get("model"), dict) and "vocab" in whole["model"]:
        vocab = whole["model"]["vocab"]
        tokens = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        return tokens | {entry["content"]: entry["id"] for entry in whole.get("added_tokens") or []}
    plain = _read(folder / "vocab.json")
    if isinstance(plain, dict):
        return plain | (_read(folder / "added_tokens.json") or {})
    if (folder / "vocab.txt").is_file():  # WordPiece before fast tokenizers: a token per line
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return {token: number for number, token in enumerate(lines)}
    return None


def _sentencepiece(folder: Path) -> bytes | None:
    """Return a SentencePiece model whole; its tokens cannot be told apart without the library, but equal files can."""
    file = next((folder / name for name in ("tokenizer.model", "spiece.model") if (folder / name).is_file()), None)
    return file.read_bytes() if file is not None else None


def _added_tokens(folder: Path) -> set[str]:
    whole = _read(folder / "tokenizer.json") or {}
    told = {entry["content"] for entry in whole.get("added_tokens") or []}
    return told | set(_read(folder / "added_tokens.json") or {})


def _special_tokens(folder: Path) -> set[str]:
    whole = _read(folder / "tokenizer.json") or {}
    return {entry["content"] for entry in whole.get("added_tokens") or [] if entry.get("special")}


def extended_tokenizer(folder: Path, added: Sequence[tuple[str, int, bool]]) -> str:
    """Return the folder's tokenizer.json with further tokens, as added tokens: they are matched before the model's own.

    Raises:
        MultituneError: the folder has no tokenizer.json.
    """
    whole = _read(folder / "tokenizer.json")
    if not isinstance(whole, dict):
        raise MultituneError(
            "The union of vocabularies needs the leader's tokenizer.json, which is missing.",
            str(folder),
            "Save the tokenizer there with a current transformers, or use vocabulary: base.",
        )
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = [{"id": number, "content": token, **plain, "special": special} for token, number, special in added]
    whole["added_tokens"] = [*(whole.get("added_tokens") or []), *entries]
    return json.dumps(whole, ensure_ascii=False)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        raise MultituneError("The file is not valid JSON.", str(file), "Copy the tokenizer again.") from None
