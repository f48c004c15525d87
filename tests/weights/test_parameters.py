"""Parameters: what is refused, and their value at a tensor."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from multitune.errors import MultituneError
from multitune.models.architecture import TensorPlace
from multitune.weights.config import MergeConfig
from multitune.weights.parameters import check, resolve, resolved


def place(name: str, layer: int | None = None, layers: int = 0, category: Any = "attention") -> TensorPlace:
    return TensorPlace(name, "layers" if layer is not None else "", layer, layers, category, None)


def refused(**fields: Any) -> str:
    with pytest.raises(MultituneError) as caught:
        check(MergeConfig(**({"base": "b", "models": ["m"]} | fields)))
    return str(caught.value)


def test_unknown_words_are_answered_with_the_nearest() -> None:
    assert "Did you mean 'ties'?" in refused(method="tie")
    assert "no parameter 'densty'. Did you mean 'density'?" in refused(method="ties", parameters={"densty": 0.2})
    assert "models[0].parameters.wieght" in refused(
        method="ties", models=[{"model": "m", "parameters": {"wieght": 1.0}}]
    )
    assert "Did you mean 'layer'?" in refused(method="ties", parameters={"granularity": "layers"})


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {"density": 1.5}, "1.5 is outside of 0 to 1"),
        ("ties", {"density": (0.5, -0.1)}, "-0.1 is outside of 0 to 1"),
        ("ties", {"density": {"*.mlp.*": 2.0}}, "2 is outside of 0 to 1"),
        ("ties", {"weight": float("nan")}, "nan is outside"),
        ("ties", {"density": "much"}, "'much' is not a number"),
        ("slerp", {"t": 1.2}, "1.2 is outside of 0 to 1"),
        ("breadcrumbs", {"keep": 0.9, "drop_top": 0.2}, "more than all entries"),
        ("breadcrumbs", {"granularity": 1.0}, "none of the choices"),
        ("ties", {"normalize": 0.5}, "0.5 is no whole number"),
        ("tall_mask", {"task": 0.5}, "0.5 is no whole number"),
        ("tall_mask", {"task": 1}, "beyond the 1 models"),
        ("consensus", {"agreement": 9}, "beyond the 1 models"),
    ],
)
def test_values_out_of_range_are_refused(method: str, parameters: dict[str, Any], words: str) -> None:
    models = ["m", "n"] if method == "slerp" else ["m"]
    assert words in refused(method=method, parameters=parameters, models=models)


def test_models_that_cannot_be_meant() -> None:
    assert "neither" in refused(method="ties", models=[])
    assert "needs the base model" in refused(method="ties", base=None)
    assert "LiNeS scales task vectors" in refused(method="linear", base=None, lines={})
    assert "'m' is given twice" in refused(method="ties", models=["m", "m"])
    assert "'b' is among the models" in refused(method="ties", models=["m", "b"])
    assert "merges 2 model(s), and 3 are given" in refused(method="slerp", models=["m", "n", "o"])
    assert "at least 2" in refused(method="model_stock")
    assert "one for the whole merge" in refused(method="ties", models=[{"model": "m", "parameters": {"lambda": 2.0}}])


def test_all_mistakes_are_told_at_once() -> None:
    told = refused(method="ties", base=None, parameters={"density": 3.0, "lamda": 1.0})
    assert "needs the base" in told
    assert "3 is outside" in told
    assert "'lamda'" in told


def test_schedules_over_depth() -> None:
    points = (0.0, 1.0, 0.5)
    found = [resolve(points, place("x", layer, 5), 5) for layer in range(5)]
    assert found == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert resolve(points, place("embed", category="embedding"), 0) == 0.0
    assert resolve(points, place("norm", category="norm"), 0) == 0.5
    assert resolve(points, place("head", category="head"), 0) == 0.5
    assert resolve(points, place("head", category="head"), 0, compat="mergekit") == 0.0  # a trap of its users
    assert resolve((0.3,), place("x", 2, 5), 5) == 0.3
    assert resolve((0.2, 0.4), place("x", 0, 1), 1) == 0.4


def test_rules_by_name_are_tried_in_order() -> None:
    rule = {"*.q_proj.*": 0.1, "*.self_attn.*": (0.0, 1.0), "default": 0.9}
    assert resolve(rule, place("layers.1.self_attn.q_proj.weight", 1, 2), 2) == 0.1
    assert resolve(rule, place("layers.1.self_attn.k_proj.weight", 1, 2), 2) == 1.0
    assert resolve(rule, place("lm_head.weight"), 2) == 0.9
    assert resolve({"*.mlp.*": 1.0}, place("lm_head.weight"), 2) is None


def test_the_nearest_level_that_says_something_holds() -> None:
    found = resolved(
        "ties",
        [{"density": {"*.mlp.*": 0.7}}, {}],
        [{"density": 0.4, "lambda": 2.0}],
        place("layers.0.self_attn.q_proj.weight", 0, 2),
        "authors",
    )
    assert found["density"] == [0.4, 0.4]
    assert found["lambda"] == 2.0
    assert found["weight"] == [1.0, 1.0]
    by_rule = resolved(
        "ties", [{"density": {"*.mlp.*": 0.7}}, {}], [], place("layers.0.mlp.up.weight", 0, 2), "mergekit"
    )
    assert by_rule["density"] == [0.7, 1.0]


def test_fractions_are_checked_at_every_tensor() -> None:
    with pytest.raises(MultituneError, match=r"keep 0.9 and drop_top 0.2"):
        resolved("breadcrumbs", [{"keep": (0.1, 0.9)}], [{"drop_top": (0.0, 0.2)}], place("x", 3, 4), "authors")
    with pytest.raises(MultituneError, match=r"density 0.1 and epsilon 0.15 give probabilities outside"):
        resolved("della", [{"density": 0.1}], [], place("x"), "authors")


def test_planning_loads_no_torch() -> None:
    program = "import multitune.weights.planning, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_merge_of_folders_loads_no_transformers() -> None:
    program = "import multitune.weights.merging, sys; raise SystemExit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
