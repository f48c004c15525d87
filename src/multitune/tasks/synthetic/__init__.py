"""Synthetic tasks: small skills with exact answers, and the documents that the embedded base is trained on.

A skill is a pure function of a `random.Random` that returns one row: `instruction`, `input`, `target`, and
`choices` (list of str) where the answer is one of a few. Everything that is generated depends only on the skill's
name and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random
from typing import Literal

from multitune.errors import MultituneError, nearest
from multitune.tasks.synthetic import arithmetic, held_out, language, lookup, sequences
from multitune.tasks.synthetic.arithmetic import Row

Skill = Callable[[Random], Row]
Episode = Callable[[Random, int], list[Row]]

SKILLS: dict[str, Skill] = {
    "add": arithmetic.add,
    "subtract": arithmetic.subtract,
    "add_with_steps": arithmetic.add_with_steps,
    "add_chain": arithmetic.add_chain,
    "compare_numbers": arithmetic.compare_numbers,
    "extreme_number": arithmetic.extreme_number,
    "parity": arithmetic.parity,
    "sort_numbers": arithmetic.sort_numbers,
    "continue_sequence": arithmetic.continue_sequence,
    "word_problem": arithmetic.word_problem,
    "copy_words": sequences.copy_words,
    "copy_letters": sequences.copy_letters,
    "reverse_letters": sequences.reverse_letters,
    "reverse_words": sequences.reverse_words,
    "sort_words": sequences.sort_words,
    "spell_words": sequences.spell_words,
    "join_letters": sequences.join_letters,
    "count_letter": sequences.count_letter,
    "count_words": sequences.count_words,
    "pick_item": sequences.pick_item,
    "item_after": sequences.item_after,
    "day_after": sequences.day_after,
    "month_order": sequences.month_order,
    "look_up": lookup.look_up,
    "look_up_key": lookup.look_up_key,
    "translate_code": lookup.translate_code,
    "plurals": language.plurals,
    "past_tenses": language.past_tenses,
    "opposites": language.opposites,
    "categories": language.categories,
    "odd_one_out": language.odd_one_out,
    "membership": language.membership,
    "syllogism": language.syllogism,
    "entailment": language.entailment,
    "sentiment": language.sentiment,
    "topic": language.topic,
    "read_passage": language.read_passage,
}
"""The skills of pretraining."""

HELD_OUT_SKILLS: dict[str, Skill] = {
    "swap_ends": held_out.swap_ends,
    "rotate_left": held_out.rotate_left,
    "double_each": held_out.double_each,
    "interleave": held_out.interleave,
    "remove_vowels": held_out.remove_vowels,
    "letter_positions": held_out.letter_positions,
    "days_later": held_out.days_later,
    "initials": held_out.initials,
    "same_ends": held_out.same_ends,
    "longest_list": held_out.longest_list,
    "message_intent": held_out.message_intent,
}
"""Skills that no pretraining document contains."""

EPISODES: dict[str, Episode] = {
    "cipher": lookup.cipher_episode,
    "labels": lookup.label_episode,
    "offset": lookup.offset_episode,
    "rule": lookup.rule_episode,
    "recall": lookup.recall_episode,
}
"""Rows that share a rule which only the demonstrations tell, so that it can be learned in context alone."""

Split = Literal["all", "train", "test"]
TEST_SHARE = 0.1  # of all inputs, decided by their digest


def is_test_input(text: str) -> bool:
    """Whether an input belongs to the test split: one in ten, by a digest of its text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < TEST_SHARE * 2**32


def draw(skill: Skill, rng: Random, split: Split = "all") -> Row:
    """One row of a skill whose input lies in the split."""
    while True:
        row = skill(rng)
        if split == "all" or is_test_input(str(row["input"])) == (split == "test"):
            return row


def generate(
    skill_name: str, rows: int = 1000, seed: int = 0, split: Split = "all", exclude: Collection[str] = ()
) -> Iterator[Row]:
    """Yield `rows` rows of a skill with different inputs, each with a stable `id`.

    Train and test never share an input: `split` picks inputs by their digest, so the two are disjoint for any seeds.

    Args:
        skill_name: a key of `SKILLS` or `HELD_OUT_SKILLS`.
        rows: how many rows.
        seed: the rows depend on the skill's name, the seed and the split, on nothing else.
        split: "train" (nine inputs of ten), "test" (the tenth) or "all".
        exclude: inputs that must not occur.

    Raises:
        MultituneError: the skill or split is unknown, or the skill has not so many different inputs.
    """
    skills = SKILLS | HELD_OUT_SKILLS
    where = f"synthetic:{skill_name}"
    if skill_name not in skills:
        hint = nearest(skill_name, skills)
        raise MultituneError(
            f"There is no synthetic skill '{skill_name}'.{hint}", where, f"Use one of: {', '.join(skills)}."
        )
    if split not in ("all", "train", "test"):
        raise MultituneError(f"There is no split '{split}'.", where, "Use all, train or test.")
    rng = Random(f"{skill_name}/{seed}/{split}")
    seen = set(exclude)
    for _ in range(rows):
        for _ in range(2000):
            row = draw(skills[skill_name], rng, split)
            if row["input"] not in seen:
                break
        else:
            raise MultituneError(
                f"The skill '{skill_name}' has fewer than {rows} different inputs in the split '{split}'.",
                where,
                "Ask for fewer rows.",
            )
        text = str(row["input"])
        seen.add(text)
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        yield {"id": f"{skill_name}:{digest}", **row}


Document = list[tuple[str, bool]]
"""Pieces of text in order; True marks an answer (what the model is trained to say). Pieces are tokenised apart."""

FORMATS: tuple[tuple[str, str, str], ...] = (
    ("Q: ", "\nA:", " "),
    ("Input: ", "\nOutput:", " "),
    ("Input: ", "\nOutput: ", ""),
    ("", " ->", " "),
    ("Question: ", "\nAnswer:", " "),
    ("", "\n", ""),
    ("", " =>", " "),
    ("Text: ", "\nLabel:", " "),
    ("Input:\n", "\nOutput:\n", ""),
)
"""Surface formats: text before the input, text before the answer, and what the answer's text begins with."""

ZERO_SHOT_FORMATS: tuple[tuple[str, str, str], ...] = (
    ("{instruction}\n{input}", "\n", ""),
    ("{instruction}\nInput: {input}", "\nOutput:", " "),
    ("{instruction}\n{input}", "\nAnswer:", " "),
    ("{instruction} {input}", "\n", ""),
    ("{input}\n{instruction}", "\n", ""),
    ("### Instruction:\n{instruction}\n\n### Input:\n{input}", "\n\n### Response:\n", ""),
    ("Q: {instruction} {input}", "\nA:", " "),
)
END = "<|endoftext|>"


def _shot_text(rows: list[Row], rng: Random, format: int | None = None) -> Document:
    before, between, start = FORMATS[rng.randrange(len(FORMATS)) if format is None else format]
    blank = "\n\n" if "\n" in between or rng.random() < 0.3 else "\n"
    pieces: Document = []
    for i, row in enumerate(rows):
        last = i == len(rows) - 1
        pieces.append((f"{before}{row['input']}{between}", False))
        pieces.append((f"{start}{row['target']}" + (END if last else blank), True))
    return pieces


def few_shot_document(rng: Random, skill: Skill, shots: int, split: Split = "train") -> Document:
    """`shots` solved rows of one skill in one surface format, with or without the instruction on top.

    The blank line after the instruction tells that demonstrations follow: without it, a lone question that looks like
    the first demonstration would leave open whether its answer is the end.
    """
    rows = [draw(skill, rng, split) for _ in range(shots)]
    pieces = _shot_text(rows, rng)
    return [(f"{rows[0]['instruction']}\n\n", False), *pieces] if rng.random() < 0.5 else pieces


def episode_document(rng: Random, episode: Episode, shots: int) -> Document:
    """`shots` rows under one rule that only they tell."""
    return _shot_text(episode(rng, shots), rng)


def zero_shot_document(rng: Random, skill: Skill, split: Split = "train") -> Document:
    """One instruction with its input, then the answer and the end."""
    row = draw(skill, rng, split)
    question, between, start = rng.choice(ZERO_SHOT_FORMATS)
    text = question.replace("{instruction}", str(row["instruction"])).replace("{input}", str(row["input"]))
    return [(text + between, False), (f"{start}{row['target']}{END}", True)]


def chat_document(rng: Random, skill: Skill, split: Split = "train") -> Document:
    """A conversation of one to three turns with the special tokens of the chat template."""
    pieces: Document = []
    for turn in range(rng.choice((1, 1, 1, 2, 3))):
        row = draw(skill, rng, split)
        question = f"{row['instruction']}\n{row['input']}"
        if turn == 0 and rng.random() < 0.3:
            pieces.append((f"<|system|>{row['instruction']}", False))
            question = str(row["input"])
        elif turn > 0 and rng.random() < 0.5:
            question = str(row["input"])
        pieces.append((f"<|user|>{question}<|assistant|>", False))
        pieces.append((f"{row['target']}{END}", True))
    return pieces


def document(
    rng: Random, shots: tuple[int, int] = (2, 8), episodes: float = 0.3, skills: Sequence[str] = tuple(SKILLS)
) -> Document:
    """One pretraining document: half of them few-shot, 15 % chat, 35 % zero-shot.

    Args:
        rng: decides everything.
        shots: fewest and most demonstrations of a few-shot document; an episode has twice as many rows.
        episodes: the share of few-shot documents whose rule only the rows tell.
        skills: the keys of `SKILLS` to draw from.
    """
    kind = rng.random()
    skill = SKILLS[rng.choice(skills)]
    if kind < 0.5:
        count = rng.randint(*shots)
        if rng.random() < episodes:
            return episode_document(rng, EPISODES[rng.choice(tuple(EPISODES))], 2 * count)
        return few_shot_document(rng, skill, count)
    if kind < 0.65:
        return chat_document(rng, skill)
    return zero_shot_document(rng, skill)
