"""What a recipe may say about its balancer."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from multitune.objectives.balancing.config import BalancerConfig, CobaConfig

ADAPTER = TypeAdapter(BalancerConfig)


def test_a_plain_string_means_the_method():
    assert ADAPTER.validate_python("coba") == CobaConfig()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cobra", "does not match any of the expected tags"),
        ({"method": "coba", "tua": 3}, "Extra inputs are not permitted"),
        ({"method": "cagrad", "c": 1.0}, "less than 1"),
        ({"method": "self_paced", "window": 1}, "greater than or equal to 2"),
        ({"tau": 3}, "Unable to extract tag"),
    ],
)
def test_what_cannot_be_meant_is_refused(value, message):
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(value)


def test_every_option_is_described():
    for name, model in ADAPTER.json_schema()["$defs"].items():
        for option, field in model["properties"].items():
            assert option == "method" or "description" in field, f"{name}.{option}"
        assert model["description"], name
