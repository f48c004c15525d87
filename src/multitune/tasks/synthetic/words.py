"""The word lists that every synthetic skill draws from; all lower case, all our own choice."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": _words(
        "cat dog horse cow sheep goat pig hen duck fox wolf bear lion tiger mouse rabbit frog snake owl crow bee ant"
    ),
    "food": _words(
        "bread rice soup cake apple pear plum grape lemon onion carrot potato cheese honey butter egg "
        "bean corn salt nut"
    ),
    "colour": _words("red blue green yellow black white brown pink grey purple orange gold silver violet"),
    "tool": _words("hammer saw drill axe knife rope ladder shovel rake brush needle file wrench broom spade"),
    "clothing": _words("hat coat shirt sock shoe glove scarf belt dress skirt boot cap jacket vest"),
    "vehicle": _words("car bus train ship boat plane truck bike tram van cart sled ferry"),
    "job": _words("baker doctor farmer teacher pilot nurse judge sailor painter singer cook writer guard tailor"),
    "place": _words(
        "house school park shop garden kitchen river forest beach bridge market station castle island field"
    ),
    "body": _words("hand foot head nose ear eye arm leg knee neck back finger mouth shoulder"),
    "weather": _words("rain snow wind storm fog hail frost cloud thunder breeze"),
    "music": _words("drum flute piano guitar harp violin horn bell trumpet"),
    "furniture": _words("table chair bed lamp shelf desk sofa bench cupboard stool"),
}
ALL_NOUNS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)

NAMES = _words(
    "anna ben carla david emma frank grace henry ida jack kate leo mary nora oscar paul rosa sam tina victor "
    "wendy alan bella clara dora eric fiona george hugo iris"
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
LETTERS = _words("a b c d e f g h i j k l m n o p q r s t u v w x y z")
VOWELS = "aeiou"

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in _words(
        "hot/cold big/small fast/slow up/down left/right day/night open/closed full/empty old/new happy/sad rich/poor "
        "hard/soft high/low long/short wet/dry light/dark strong/weak early/late clean/dirty loud/quiet near/far "
        "thick/thin wide/narrow sweet/sour young/aged first/last true/false good/bad easy/difficult heavy/airy"
    )
)
PAST_TENSES: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in _words(
        "go/went see/saw eat/ate run/ran give/gave take/took come/came know/knew find/found think/thought tell/told "
        "make/made say/said get/got sing/sang write/wrote drive/drove speak/spoke break/broke buy/bought bring/brought "
        "catch/caught teach/taught walk/walked talk/talked jump/jumped play/played work/worked look/looked call/called "
        "help/helped open/opened clean/cleaned paint/painted wash/washed cook/cooked move/moved live/lived love/loved "
        "carry/carried study/studied cry/cried try/tried stop/stopped plan/planned"
    )
)
IRREGULAR_PLURALS = {
    "sheep": "sheep",
    "mouse": "mice",
    "foot": "feet",
    "wolf": "wolves",
    "knife": "knives",
    "shelf": "shelves",
}
COUNTABLE: tuple[str, ...] = tuple(
    word
    for category in ("animal", "tool", "clothing", "vehicle", "job", "place", "furniture", "body")
    for word in CATEGORIES[category]
)

NONSENSE = _words(
    "dax wif lug zup fep blick tufa kiki gorp mib zot vex plim sarn tog quib drel noot fash yim brok skel hux jav "
    "lorp crim deeb wug tark opal rill mox"
)

GOOD = _words("wonderful lovely great superb charming delightful brilliant splendid fine clever fresh warm excellent")
BAD = _words("awful boring terrible dull dreadful weak stupid ugly poor bland cheap nasty horrible")


def plural(word: str) -> str:
    """The plural of a word of `COUNTABLE`, by the regular rules unless `IRREGULAR_PLURALS` has it."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def spaced(word: str) -> str:
    """The letters of a word with single spaces between them: "cat" gives "c a t"."""
    return " ".join(word)
