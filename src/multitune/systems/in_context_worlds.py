"""Three small worlds for evaluation in context: renamed symbols, sentences by letters, a leaked benchmark.

Each gives a decoder trained from nothing as a ``Backbone`` with a tokenizer, so that questions go through the packer,
the scorer and the search for contamination that users call, and never through the code that trained it.

Shape legend: ``B`` rows of a batch, ``S`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from multitune.models.pretrained import Backbone, ModelConfig
from multitune.tasks.task import Example, Prompted, Task

PADDING, END = 0, 1
SYMBOLS, PAIRS = 6, 13
SHORT, MIDDLE, LONG = range(8), range(8, 24), range(24, 40)
OPTIONS = 10


def decoder(words: Sequence[str], positions: int, seed: int, *, by_letter: bool, embedding_std: float) -> Backbone:
    """Return an untrained GPT-2 of 2 layers, width 64 and 4 heads, whose tokens are words, or letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<end>", *words))}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    whole = pre_tokenizers.Split(Regex("."), "isolated") if by_letter else pre_tokenizers.WhitespaceSplit()
    tokens.pre_tokenizer = whole
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=positions,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # transformers finds none by this class's name, and says so every time
        torch.nn.init.normal_(model.transformer.wte.weight, std=embedding_std)
        torch.nn.init.normal_(model.transformer.wpe.weight, std=embedding_std)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<end>")
    return Backbone(model, tokenizer, "causal", ModelConfig(name=f"decoder-from-seed-{seed}"))


def train(model: Any, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int, rate: float, warmup: int = 100) -> None:
    """Train a model in place with AdamW (betas 0.9 and 0.98) on (ids, labels) [B, S], -100 without loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    model.train()
    for _ in range(steps):
        ids_BS, labels_BS = next(batches)
        optimizer.zero_grad()
        model(input_ids=ids_BS, attention_mask=ids_BS != PADDING, labels=labels_BS).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def shuffled_batches(rows: Sequence[Sequence[int]], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of rows of token ids, pass after pass, each pass shuffled; loss on every token."""
    draw = Random(seed)
    while True:
        order = draw.sample(range(len(rows)), len(rows))
        for start in range(0, len(rows) - size + 1, size):
            now = [rows[place] for place in order[start : start + size]]
            length = max(map(len, now))
            ids_BS = torch.tensor([[*row, *[PADDING] * (length - len(row))] for row in now])
            yield ids_BS, torch.where(ids_BS == PADDING, -100, ids_BS)


def question(task: str, number: int, prompt: str, choices: Sequence[str], right: int) -> Prompted:
    """Return a row that offers choices."""
    example = Example(f"{task}:{number}", f"{task}:{number}", {"prompt": prompt, "answer": choices[right]})
    return Prompted(example, 0, prompt, (), choices[right], tuple(choices), right, None)


# Symbols x0 to x5, renamed y0 to y5 in another order in every sequence.

SYMBOL_TASK = Task(name="symbols", kind="choose", prompt="{{ prompt }}", choices="choices")
NAMES = tuple(f"y{i}" for i in range(SYMBOLS))


def symbol_learner(seed: int) -> Backbone:
    """Return a decoder for 13 pairs of symbols, embeddings drawn with a standard deviation of 0.5."""
    words = (*(f"x{i}" for i in range(SYMBOLS)), *NAMES)
    return decoder(words, 2 * PAIRS, seed, by_letter=False, embedding_std=0.5)


def symbol_batches(seed: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield sequences of 13 pairs [B, 26], each with a permutation of its own; loss on the second of every pair."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        renamed_BK = torch.rand(size, SYMBOLS, generator=generator).argsort(-1)
        x_BP = torch.randint(SYMBOLS, (size, PAIRS), generator=generator)
        y_BP = renamed_BK.gather(1, x_BP)
        ids_BS = torch.stack([2 + x_BP, 2 + SYMBOLS + y_BP], -1).flatten(1)
        labels_BS = ids_BS.clone()
        labels_BS[:, ::2] = -100
        yield ids_BS, labels_BS


def symbol_questions(count: int, seed: int, *, relabelled: bool) -> tuple[list[Prompted], list[list[Prompted]]]:
    """Return questions, and for each a list of 12 demonstrations of which any beginning may be shown.

    Args:
        relabelled: the answers of the demonstrations are renamed by a permutation that the right answer does not know.
    """
    draw = Random(f"symbols/{seed}")
    questions, shown = [], []
    for number in range(count):
        renamed = draw.sample(range(SYMBOLS), SYMBOLS)
        again = draw.sample(range(SYMBOLS), SYMBOLS) if relabelled else list(range(SYMBOLS))
        asked = draw.randrange(SYMBOLS)
        questions.append(question("symbols", number, f"x{asked}", NAMES, renamed[asked]))
        pairs = [draw.randrange(SYMBOLS) for _ in range(PAIRS - 1)]
        shown.append([question("shown", number, f"x{x}", NAMES, again[renamed[x]]) for x in pairs])
    return questions, shown


# Sentences whose last word is likelier after some subjects; the frequent words are short, as in any language.


@dataclass(frozen=True)
class Sentences:
    """A language of sentences: an adjective, a noun and a verb, or "it" and a verb.

    Attributes:
        adjectives, nouns, verbs: verbs by falling frequency, 1 / rank; the first 8 are short, the last 16 long.
        favourite: the verb of every noun, one that is not short, that ends its sentences more often.
    """

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    favourite: tuple[int, ...]

    def sentence(self, draw: Random, favoured: float) -> str:
        """Return a sentence; a noun's favourite verb ends so large a share of its sentences, beside its frequency."""
        weights = [1 / (rank + 1) for rank in range(len(self.verbs))]
        verb = self.verbs[draw.choices(range(len(self.verbs)), weights)[0]]
        if draw.random() < 0.25:
            return f"it {verb}"
        noun = draw.randrange(len(self.nouns))
        if draw.random() < favoured:
            verb = self.verbs[self.favourite[noun]]
        return f"the {draw.choice(self.adjectives)} {self.nouns[noun]} {verb}"


def sentences(seed: int) -> Sentences:
    """Return the language of a seed: 12 adjectives, 30 nouns, 40 verbs of 2 or 3, 4 to 6 and 7 to 10 letters."""
    draw, known = Random(f"sentences/{seed}"), {"it", "the"}
    words = [_new_word(draw, known, 4, 7) for _ in range(42)]
    lengths = [(2, 3) for _ in SHORT] + [(4, 6) for _ in MIDDLE] + [(7, 10) for _ in LONG]
    verbs = tuple(_new_word(draw, known, *bounds) for bounds in lengths)
    favourite = tuple(draw.choice([*MIDDLE, *LONG]) for _ in range(30))
    return Sentences(tuple(words[:12]), tuple(words[12:]), verbs, favourite)


CLOZE_TASK = Task(name="cloze", kind="choose", prompt="{{ prompt }}", choices="choices")


def letter_model(seed: int) -> Backbone:
    """Return a decoder that reads and writes letters."""
    return decoder(" abcdefghijklmnopqrstuvwxyz", 64, seed, by_letter=True, embedding_std=0.02)


def cloze_questions(language: Sentences, count: int, seed: int) -> list[Prompted]:
    """Return sentences to end: with the noun's favourite, a frequent short verb, a middle one or a rare long one."""
    draw = Random(f"cloze/{seed}")
    rows = []
    for number in range(count):
        noun = draw.randrange(len(language.nouns))
        right = language.favourite[noun]
        others = [draw.choice([verb for verb in part if verb != right]) for part in (SHORT, MIDDLE, LONG)]
        choices = draw.sample([right, *others], 4)
        prompt = f"the {draw.choice(language.adjectives)} {language.nouns[noun]}"
        rows.append(question("cloze", number, prompt, [language.verbs[i] for i in choices], choices.index(right)))
    return rows


def _new_word(draw: Random, known: set[str], shortest: int, longest: int) -> str:
    """Return a word that no known word begins and that begins none, so that no choice needs an end."""
    while True:
        letters = draw.randint(shortest, longest)
        word = "".join(draw.choice("aeiou" if place % 2 else "bdfgklmnprstvz") for place in range(letters))
        if not any(word.startswith(other) or other.startswith(word) for other in known):
            known.add(word)
            return word


# A benchmark of which a part stands in a corpus.


@dataclass(frozen=True)
class Leak:
    """A corpus and a benchmark that has partly leaked into it.

    Attributes:
        vocabulary: the corpus's words, by falling frequency.
        questions: 15 to 24 words and one of ten answers, drawn at random: nobody can know them.
        planted: places of those that stand in the corpus with their answers, in other case and with commas.
        changed: places of those that stand there with the word in their middle changed.
        documents: the corpus, texts of 200 words and what stands in them.
        around: the document of every planted question; others where ``planted`` has no such place.
    """

    vocabulary: tuple[str, ...]
    questions: tuple[Prompted, ...]
    planted: frozenset[int]
    changed: frozenset[int]
    documents: tuple[str, ...]
    around: dict[int, int]


LEAK_TASK = Task(name="leak", kind="choose", prompt="{{ prompt }}", choices="choices")


def word_model(vocabulary: Sequence[str], seed: int) -> Backbone:
    """Return a decoder whose tokens are the corpus's words."""
    return decoder(vocabulary, 64, seed, by_letter=False, embedding_std=0.02)


def leak(seed: int, *, megabytes: float, items: int) -> Leak:
    """Return a corpus of so many million letters, and a benchmark of which 30 % leaked and 10 % almost."""
    draw, known = Random(f"leak/{seed}"), set[str]()
    vocabulary = tuple(_new_word(draw, known, 5, 9) for _ in range(2000))
    frequency = [1 / (rank + 10) for rank in range(len(vocabulary))]
    names = vocabulary[100 : 100 + OPTIONS]

    def text(words: int) -> list[str]:
        return draw.choices(vocabulary, frequency, k=words)

    questions = tuple(
        question("leak", i, " ".join(text(draw.randint(15, 24))), names, draw.randrange(OPTIONS)) for i in range(items)
    )
    order = draw.sample(range(items), items)
    planted, changed = order[: items * 3 // 10], order[items * 3 // 10 : items * 4 // 10]
    documents = [text(200) for _ in range(int(megabytes * 1e6 / (200 * (sum(map(len, vocabulary)) / 2000 + 1))))]
    places = draw.sample(range(len(documents)), len(planted) + len(changed))
    for place, i in zip(places, [*planted, *changed], strict=True):
        words = f"{questions[i].prompt} {questions[i].target}".split()
        if i in changed:
            words[len(words) // 2] = draw.choice([word for word in vocabulary if word not in words])
        cut = draw.randrange(100)
        documents[place][cut:cut] = f"{' '.join(words[:4]).capitalize()}, {' '.join(words[4:])}.".split()
    around = dict(zip(planted, places, strict=False))
    whole = tuple(" ".join(words) for words in documents)
    return Leak(vocabulary, questions, frozenset(planted), frozenset(changed), whole, around)


def windows(found: Leak, *, with_items: bool, words: int = 40) -> list[str]:
    """Return as many pieces of the corpus as items were planted: those that end with one, or pieces without any."""
    pieces = []
    if with_items:
        for item, place in found.around.items():
            asked = found.questions[item]
            plain = " ".join(found.documents[place].lower().replace(",", "").replace(".", "").split())
            end = plain.index(asked.prompt) + len(f"{asked.prompt} {asked.target}")
            pieces.append(" ".join(plain[:end].split()[-words:]))
        return pieces
    used = set(found.around.values())
    clean = [i for i in range(len(found.documents)) if i not in used][: len(used)]
    return [" ".join(found.documents[i].lower().replace(",", "").replace(".", "").split()[:words]) for i in clean]
