"""Skills about words and small sentences: word forms, categories, entailment, feeling, topic, reading."""

from __future__ import annotations

from random import Random

from multitune.tasks.synthetic import words
from multitune.tasks.synthetic.arithmetic import Row
from multitune.tasks.synthetic.sequences import random_words

YES_NO = ["yes", "no"]


def plurals(rng: Random) -> Row:
    """The plural of one to three nouns."""
    nouns = rng.sample(words.COUNTABLE, rng.randint(1, 3))
    return {
        "instruction": rng.choice(("Write the plural.", "More than one of each.")),
        "input": " ".join(nouns),
        "target": " ".join(map(words.plural, nouns)),
    }


def past_tenses(rng: Random) -> Row:
    """The past tense of one to three verbs."""
    pairs = rng.sample(words.PAST_TENSES, rng.randint(1, 3))
    return {
        "instruction": rng.choice(("Write the past tense.", "Put the verbs into the past.")),
        "input": " ".join(now for now, _ in pairs),
        "target": " ".join(past for _, past in pairs),
    }


def opposites(rng: Random) -> Row:
    """The opposite of one to three words."""
    pairs = [pair if rng.random() < 0.5 else pair[::-1] for pair in rng.sample(words.OPPOSITES, rng.randint(1, 3))]
    return {
        "instruction": rng.choice(("Write the opposite.", "Say the contrary of each word.")),
        "input": " ".join(word for word, _ in pairs),
        "target": " ".join(contrary for _, contrary in pairs),
    }


def categories(rng: Random) -> Row:
    """The category that two or three words share."""
    name = rng.choice(tuple(words.CATEGORIES))
    items = rng.sample(words.CATEGORIES[name], rng.randint(2, 3))
    return {
        "instruction": rng.choice(("Name the category.", "What kind of things are these?")),
        "input": " ".join(items),
        "target": name,
        "choices": list(words.CATEGORIES),
    }


def odd_one_out(rng: Random) -> Row:
    """The one word of four that is of another category."""
    kind, other = rng.sample(tuple(words.CATEGORIES), 2)
    odd = rng.choice(words.CATEGORIES[other])
    items = [*rng.sample(words.CATEGORIES[kind], 3), odd]
    rng.shuffle(items)
    return {
        "instruction": rng.choice(("Find the odd one out.", "Which word does not belong?")),
        "input": " ".join(items),
        "target": odd,
        "choices": items,
    }


def membership(rng: Random) -> Row:
    """Whether a word is in a list, yes or no."""
    items = random_words(rng, 3, 7)
    asked = rng.choice(items) if rng.random() < 0.5 else rng.choice(words.ALL_NOUNS)
    return {
        "instruction": rng.choice(("Is the word in the list?", "Answer yes or no.")),
        "input": f"is {asked} in {' '.join(items)}",
        "target": "yes" if asked in items else "no",
        "choices": YES_NO,
    }


def syllogism(rng: Random) -> Row:
    """Whether a conclusion follows from "all X are Y" and one fact; nonsense nouns, so only the form counts."""
    x, y, z = rng.sample(words.NONSENSE, 3)
    name = rng.choice(words.NAMES)
    rule, (premise, conclusion, follows) = (
        f"all {x} are {y}.",
        rng.choice(((x, y, "yes"), (x, y, "yes"), (x, z, "no"), (z, y, "no"))),
    )
    return {
        "instruction": rng.choice(("Does it follow?", "Answer yes or no.")),
        "input": f"{rule} {name} is a {premise}. is {name} a {conclusion}?",
        "target": follows,
        "choices": YES_NO,
    }


def entailment(rng: Random) -> Row:
    """Whether a second sentence is true given the first: yes, no or unknown."""
    name, other = rng.sample(words.NAMES, 2)
    thing, wrong = rng.sample(words.COUNTABLE, 2)
    place, elsewhere = rng.sample(words.CATEGORIES["place"], 2)
    verdict, claim = rng.choice(
        (
            ("yes", f"{name} has a {thing}."),
            ("yes", f"{name} is at the {place}."),
            ("no", f"{name} is at the {elsewhere}."),
            ("no", f"{name} has no {thing}."),
            ("unknown", f"{other} has a {thing}."),
            ("unknown", f"{name} has a {wrong}."),
        )
    )
    return {
        "instruction": rng.choice(("Is the claim true?", "Answer yes, no or unknown.")),
        "input": f"{name} is at the {place} with a {thing}. claim: {claim}",
        "target": verdict,
        "choices": ["yes", "no", "unknown"],
    }


_PRAISED = ("film", "book", "song", "meal", "hotel", "story", "trip", "game", "play", "phone")


def sentiment(rng: Random) -> Row:
    """Positive or negative, for a sentence from templates; negation turns the feeling round."""
    good = rng.random() < 0.5
    negated = rng.random() < 0.25
    adjective = rng.choice(words.GOOD if good != negated else words.BAD)
    second = rng.choice(words.GOOD if good else words.BAD)
    thing = rng.choice(_PRAISED)
    be = "was not" if negated else rng.choice(("was", "was really", "was very", "seemed"))
    text = rng.choice(
        (
            f"the {thing} {be} {adjective}.",
            f"we saw it with {rng.choice(words.NAMES)} and the {thing} {be} {adjective}.",
            f"the {thing} {be} {adjective} and the end was {second}.",
            f"i think this {thing} {be} {adjective}, what a {second} day.",
        )
    )
    return {
        "instruction": rng.choice(("Is the text positive or negative?", "What is the feeling of the text?")),
        "input": text,
        "target": "positive" if good else "negative",
        "choices": ["positive", "negative"],
    }


_TOPICS: dict[str, tuple[str, ...]] = {
    "sport": (
        "the team won the match by {n} goals",
        "{name} ran {n} miles and won the race",
        "{name} scored {n} points in the game",
    ),
    "money": (
        "the bank lent {name} {n} coins",
        "the price of the {thing} rose by {n} percent",
        "{name} sold {n} shares at the market",
    ),
    "weather": (
        "{n} days of rain are expected",
        "snow fell for {n} hours near the {place}",
        "a storm hit the {place} and {name} stayed home",
    ),
    "travel": (
        "{name} took the train to the {place}",
        "the flight to the island took {n} hours",
        "{name} packed a {thing} for the long trip",
    ),
    "school": (
        "{name} read {n} pages for the lesson",
        "the teacher gave {name} a test with {n} questions",
        "the class learned to draw a {thing}",
    ),
}


def topic(rng: Random) -> Row:
    """The topic of a sentence from templates."""
    name = rng.choice(tuple(_TOPICS))
    text = rng.choice(_TOPICS[name]).format(
        n=rng.randint(2, 60),
        name=rng.choice(words.NAMES),
        thing=rng.choice(words.COUNTABLE),
        place=rng.choice(words.CATEGORIES["place"]),
    )
    return {
        "instruction": rng.choice(("What is the topic?", "Choose the topic of the text.")),
        "input": text,
        "target": name,
        "choices": list(_TOPICS),
    }


def read_passage(rng: Random) -> Row:
    """A question about a passage of two or three facts."""
    count = rng.randint(2, 3)
    people = rng.sample(words.NAMES, count)
    places = rng.sample(words.CATEGORIES["place"], count)
    things = rng.sample(words.COUNTABLE, count)
    colours = rng.sample(words.CATEGORIES["colour"], count)
    facts = [f"{p} is at the {w} with a {c} {t}." for p, w, c, t in zip(people, places, colours, things, strict=True)]
    i = rng.randrange(count)
    question, answer = rng.choice(
        (
            (f"where is {people[i]}?", places[i]),
            (f"what does {people[i]} have?", things[i]),
            (f"who is at the {places[i]}?", people[i]),
            (f"who has the {things[i]}?", people[i]),
            (f"what colour is the {things[i]}?", colours[i]),
        )
    )
    return {
        "instruction": rng.choice(("Answer the question.", "Read the text and answer.")),
        "input": " ".join(facts) + " " + question,
        "target": answer,
    }
