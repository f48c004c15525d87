from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

import pytest
from pydantic import ValidationError

from multitune.adaptation import METHODS, AdaptationConfig
from multitune.adaptation.config import FIELDS_FILE, default_options, peft_fields
from multitune.adaptation.fields import as_text, installed_fields
from multitune.adaptation.methods import NOT_OFFERED, WITHOUT_ADAPTER
from multitune.adaptation.update_config import UPDATES


def test_a_string_means_the_method_and_full_is_the_default() -> None:
    assert AdaptationConfig.model_validate("lora").method == "lora"
    assert AdaptationConfig().method == "full"


def test_options_stand_flat_beside_the_method_and_override_its_defaults() -> None:
    config = AdaptationConfig.model_validate({"method": "lora", "r": 4, "target_modules": ["q_proj"]})
    assert config.options == {"r": 4, "target_modules": ["q_proj"]}
    assert config.resolved == {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lara"}, "no method 'lara'. Did you mean 'lora'?"),
        ({"method": "lora", "lora_alfa": 8}, "no option 'lora_alfa'. Did you mean 'lora_alpha'?"),
        ({"method": "lora", "r": "sixteen"}, "'r' of 'lora' must be integer, not 'sixteen'"),
        ({"method": "lora", "r": True}, "'r' of 'lora' must be integer, not True"),
        ({"method": "lora", "bias": "al"}, "'bias' of 'lora' cannot be 'al'. Did you mean 'all'?"),
        ({"method": "lora", "peft_type": "LORA"}, "no option 'peft_type'"),
        ({"method": "full", "r": 8}, "Full fine-tuning has no option 'r'"),
        ({"method": "half", "fracton": 0.5}, "'half' has no option 'fracton'. Did you mean 'fraction'?"),
        ({"method": "half", "fraction": 1.5}, "'fraction' of 'half' must be less than or equal to 1, not 1.5"),
        ({"method": "half", "granularity": "block"}, "'granularity' of 'half' must be 'category', 'layer' or 'model'"),
        ({"method": "lora_plus", "rate_ratio": 0.5}, "'rate_ratio' of 'lora_plus' must be greater than or equal to 1"),
        ({"method": "lora_plus", "rate_ration": 2}, "no option 'rate_ration'. Did you mean 'rate_ratio'?"),
        ({"method": "lora_fa", "r": "two"}, "'r' of 'lora_fa' must be integer, not 'two'"),
        ({"method": "child_tuning", "variant": "G"}, "'variant' of 'child_tuning' must be 'F' or 'D', not 'G'"),
        ({"method": "child_tuning", "budget": 5}, "no size that a budget"),
        ({"method": "fish", "keep": 0}, "'keep' of 'fish' must be greater than 0, not 0"),
        ({"method": "fish", "keep": 5, "budget": 5}, "Both budget and keep"),
        ({"method": "fish", "r": 5}, "'fish' has no option 'r'"),
        (
            {"method": "delta_lora", "delta_ratio": -1},
            "'delta_ratio' of 'delta_lora' must be greater than or equal to 0",
        ),
        ({"method": "trainable_tokens"}, "needs the option 'token_indices'"),
        ({"method": "xlora"}, "'xlora' is not offered: peft 0.21 writes"),
        ({"method": "lora", "init_lora_weights": "eva"}, "cannot be 'eva': it looks at batches"),
        ({"method": "lora", "init_lora_weights": "lora_ga"}, "cannot be 'lora_ga': it looks at gradients"),
        ({"method": "lora_plus", "init_lora_weights": "pissa_niter_4"}, "'pissa' is exact"),
        ({"method": "poly"}, "'poly' is not offered: mhr with n_splits: 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AdaptationConfig.model_validate(given)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValidationError, match=r"lora_alfa.*ranck"):
        AdaptationConfig.model_validate({"method": "lora", "lora_alfa": 8, "ranck": 3})


@pytest.mark.parametrize("value", [True, "gaussian", "pissa", "olora"])
def test_choices_of_peft_pass(value: object) -> None:
    AdaptationConfig(method="lora", init_lora_weights=value)


def test_the_fields_file_says_what_the_installed_peft_says() -> None:
    import peft

    written = files("multitune.adaptation").joinpath(FIELDS_FILE).read_text(encoding="utf-8")
    if json.loads(written)["peft"] != peft.__version__:
        pytest.skip(f"peft {peft.__version__} is installed, the file describes {json.loads(written)['peft']}")
    assert written == as_text(installed_fields())


def test_every_method_of_peft_has_an_entry_and_its_defaults_are_options() -> None:
    assert set(METHODS) == {*WITHOUT_ADAPTER, *UPDATES, *peft_fields()}
    assert set(NOT_OFFERED) <= set(METHODS)
    for name, method in METHODS.items():
        named = {*method.defaults, *method.follows, *([method.size] if method.size else [])}
        assert named <= set(default_options(name)), name


def test_checking_a_config_imports_neither_peft_nor_torch() -> None:
    program = (
        "import sys; from multitune.adaptation import AdaptationConfig; AdaptationConfig(method='lora', r=8);"
        "print([name for name in ('peft', 'torch', 'transformers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_options_of_the_optimiser_are_no_options_of_peft() -> None:
    config = AdaptationConfig(method="lora_plus", r=4, rate_ratio=8)
    assert config.resolved == {"r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
    assert config.update == UPDATES["lora_plus"](rate_ratio=8)
    assert AdaptationConfig(method="lora").update is None
    assert default_options("lora_plus")["rate_ratio"] == 16
