"""Templates: exact text, strict fields, and nothing within reach but the row."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRow
from multitune.tasks.templates import compile_expression, compile_template, fields_needed, refuse_unknown_fields

ROW = {
    "text": "abc",
    "count": 3,
    "score": 0.5,
    "flag": True,
    "null": None,
    "tokens": ["a", "b"],
    "nested": {"items": "own", "title": "T", "list": [1, 2]},
    "Sentence 1": "with a blank",
    "__index__": "kept",
    "hostile": "{{ 7 * 7 }}{% for i in x %}",
}


def render(template: str, row: dict | None = None) -> str:
    return compile_template(template, "tasks.a.prompt")(ROW if row is None else row)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ text }}", "abc"),
        (" {{ text }}\n", " abc\n"),
        ("\n  {{ text }}  \n\n", "\n  abc  \n\n"),
        ("{{ count }}/{{ score }}/{{ flag }}", "3/0.5/True"),
        ("no field", "no field"),
        ("", ""),
        ("{{ tokens | join(' ') }}", "a b"),
        ("{{ tokens[0] }}{{ tokens[-1] }}", "ab"),
        ("{{ nested.items }} {{ nested['title'] }} {{ nested.list[1] }}", "own T 2"),
        ('{{ row["Sentence 1"] }}', "with a blank"),
        ("{{ __index__ }}", "kept"),
        ("{% if missing is defined %}{{ missing }}{% else %}none{% endif %}", "none"),
        ("{{ missing | default('none') }}", "none"),
        ("{% for t in tokens %}{{ loop.index }}.{{ t }};{% endfor %}", "1.a;2.b;"),
        ("{{ text.upper() }}{{ text | title }}", "ABCAbc"),
        ("{{ 'ab' * 2 }}{{ 2 + 3 }}", "abab5"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("{{ nested | tojson }}", '{"items": "own", "title": "T", "list": [1, 2]}'),
        ("{{ '<é>' | tojson }}", '"<é>"'),
        ("{# said to the reader #}{{ text }}", "abc"),
        ("{{ '{{ text }}' }}", "{{ text }}"),
    ],
)
def test_a_template_gives_exactly_its_text(template, text):
    assert render(template) == text


def test_what_a_row_holds_is_never_a_template():
    assert render("{{ hostile }}") == ROW["hostile"]
    assert render("{{ hostile | trim }}!") == ROW["hostile"] + "!"


fragments = st.text("ab \n\t{}%#é", max_size=6).filter(lambda text: not any(s in text for s in ("{{", "{%", "{#")))


@given(
    pieces=st.lists(st.one_of(fragments, st.sampled_from(["{{ x }}", "{{y}}", "{{- x }}", "{{ y -}}"])), max_size=6),
    x=st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.booleans()),
    y=st.text(max_size=5),
)
def test_the_short_way_gives_what_jinja_gives(pieces, x, y):
    template = "|".join(pieces)
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        expected = plain.from_string(template).render({"x": x, "y": y})
    except jinja2.TemplateSyntaxError:
        with pytest.raises(MultituneError):
            render(template, {"x": x, "y": y})
    else:
        assert render(template, {"x": x, "y": y}) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ missing }}", "the row has no field 'missing'"),
        ("{{ missing }} {{ text | upper }}", "'missing' is undefined"),
        ("{{ nested.missing }}", "has no attribute 'missing'"),
        ("{{ missing() }}", "'missing' is undefined"),
        ("{{ text.missing() }}", "has no attribute 'missing'"),
        ("{{ null }}", "is null"),
        ("{{ null }}{{ text | upper }}", "is null"),
        ("{{ tokens }}", "is a list, not text; join it"),
        ("{{ tokens }}{{ text | upper }}", "is a list, not text; join it"),
        ("{{ nested }}", "of type dict, not text"),
        ("{{ [nested] | join }}", "of type dict, not text"),
        ("{{ [text, null] | join }}", "is null"),
        ("{{ text.upper }}", "of type builtin_function_or_method, not text"),
        ("{{ tokens | map('upper') }}", "of type generator, not text"),
        ("{{ text + 1 }}", "fails on this row: TypeError"),
        ("{{ 1 / 0 }}", "fails on this row: ZeroDivisionError"),
    ],
)
def test_a_row_that_does_not_fit_is_bad(template, reason):
    with pytest.raises(BadRow, match=reason.replace("(", r"\(")):
        render(template)


@pytest.mark.parametrize("before", ["", "{{ text | upper }}"])  # the short way and Jinja's own
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ text.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ text['__cl' ~ 'ass__'] }}",
        "{{ (text ~ '').__init__.__globals__ }}",
        "{{ tokens.__reduce__() }}",
        "{% set leak = text.__class__ %}{{ leak }}",
        "{{ self.__init__ }}",
        "{{ range.__globals__ }}",
        "{{ tokens | map(attribute='__class__') | list | join }}",
        "{{ [text] | groupby('__class__') | list | join }}",
        "{{ text | attr('__class__') }}",
        "{{ [text] | map('attr', '__class__') | list | join }}",
        "{{ text.format(text) }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ '{0.__class__}'.format_map(nested) }}",
        "{{ '%99999999s' | format(text) }}",
        "{{ text.center(10) }}",
        "{{ text.encode() }}",
        "{{ tokens.append('c') }}",
        "{{ nested.update({}) }}",
        "{{ 'a' * 1000000 }}",
        "{{ 1000000 * 'a' }}",
        "{{ [1] * 1000000 }}",
        "{{ 2 ** 3 }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ lipsum(100) }}",
        "{{ cycler }}",
        "{{ namespace(x=1) }}",
        "{{ text | indent(1000000) }}",
        "{{ text | center(1000000) }}",
        "{{ text | random }}",
        "{% include 'secrets' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import system %}",
        "{% extends 'base' %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_nothing_but_the_row_is_within_reach(before, template):
    tokens = list(ROW["tokens"])
    with pytest.raises((MultituneError, BadRow)) as error:
        render(before + template)
    assert "0x" not in str(error.value)  # no address of anything either
    assert ROW["tokens"] == tokens


@pytest.mark.parametrize(
    "template", ["{{ text", "{% if %}", "{{ text | nofilter }}", "{% for %}", "{{ text is notest }}"]
)
def test_what_is_no_template_is_refused_with_its_place(template):
    with pytest.raises(MultituneError, match="not valid Jinja2") as error:
        render(template)
    assert error.value.where.startswith("tasks.a.prompt")


def test_an_unknown_field_is_refused_with_the_nearest():
    needed = fields_needed(
        "{{ txt }} {{ text }} {% if b is defined %}{{ b }}{% endif %}{{ c | default('') }}", "a.prompt"
    )
    assert needed == {"txt", "text"}
    refuse_unknown_fields({"text"}, ["text", "label"], "a.prompt")
    with pytest.raises(MultituneError, match="Did you mean 'text'") as error:
        refuse_unknown_fields(needed, ["text", "label"], "a.prompt")
    assert (error.value.where, error.value.mend) == ("a.prompt", "The rows have: text, label.")


def test_an_expression_gives_a_value_and_not_its_text():
    assert compile_expression("tokens", "a.choices")(ROW) == ["a", "b"]
    assert compile_expression("{{ nested.list }}", "a.choices")(ROW) == [1, 2]
    assert compile_expression("{{ text.split('b') }}", "a.choices")(ROW) == ["a", "c"]
    assert compile_expression("{{ [text, count] }}", "a.choices")(ROW) == ["abc", 3]
    with pytest.raises(BadRow, match="has no 'missing'"):
        compile_expression("missing", "a.choices")(ROW)
    with pytest.raises(MultituneError):
        compile_expression("{{ text.__class__ }}", "a.choices")
    with pytest.raises(MultituneError):
        compile_expression("tokens[", "a.choices")
