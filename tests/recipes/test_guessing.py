"""Fields with names of their own are guessed where it is plain, and not elsewhere."""

from __future__ import annotations

import pytest

from multitune.recipes.guessing import guess_fields


def reviews(**more):
    return [
        {"review_text": f"A film of {i} minutes that I liked", "sentiment": "good" if i % 3 else "bad"}
        | {name: value(i) for name, value in more.items()}
        for i in range(60)
    ]


@pytest.mark.parametrize("more", [{}, {"id": lambda i: i}, {"user": lambda i: f"user{i}"}])
def test_one_long_text_and_few_labels(more):
    assert guess_fields(reviews(**more)) == ("review_text", "sentiment")


@pytest.mark.parametrize(
    "rows",
    [
        reviews(title=lambda i: f"A title of about the same length {i}"),  # which of the two is asked?
        [{"question": f"What is {i} plus {i}, please?", "reply": str(2 * i)} for i in range(60)],  # no labels
        [{"text": f"a longer text {i}"} for i in range(60)],
        [{"text": f"a longer text {i}", "label": "one"} for i in range(60)],
        [{"text": ["no", "text"], "label": "ab"[i % 2]} for i in range(60)],
    ],
)
def test_what_is_not_plain_is_left_open(rows):
    assert guess_fields(rows) is None
