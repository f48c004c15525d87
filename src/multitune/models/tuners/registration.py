"""The one place that knows how peft keeps its list of methods.

peft's ``PeftType`` is a closed enumeration, and `register_peft_method` takes only its members: a member is added first.
tests/models/test_tuners.py fails loudly where another version of peft keeps its list in another way.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

OURS: dict[str, tuple[str, str, str]] = {
    "adamix": ("multitune.models.tuners.adamix", "AdaMixConfig", "AdaMixModel"),
    "adapter_bias": ("multitune.models.tuners.adapter_bias", "AdapterBiasConfig", "AdapterBiasModel"),
    "binary_mask": ("multitune.models.tuners.binary_mask", "BinaryMaskConfig", "BinaryMaskModel"),
    "bitfit": ("multitune.models.tuners.bitfit", "BitFitConfig", "BitFitModel"),
    "bottleneck": ("multitune.models.tuners.bottleneck", "BottleneckConfig", "BottleneckModel"),
    "compacter": ("multitune.models.tuners.compacter", "CompacterConfig", "CompacterModel"),
    "dept": ("multitune.models.tuners.soft_prompt_model", "DeptConfig", "DeptModel"),
    "diff_fit": ("multitune.models.tuners.diff_fit", "DiffFitConfig", "DiffFitModel"),
    "diff_pruning": ("multitune.models.tuners.diff_pruning", "DiffPruningConfig", "DiffPruningModel"),
    "ept": ("multitune.models.tuners.soft_prompt_model", "EptConfig", "EptModel"),
    "mam": ("multitune.models.tuners.hybrid", "MamConfig", "MamModel"),
    "mhr": ("multitune.models.tuners.mhr", "MhrConfig", "MhrModel"),
    "mpt": ("multitune.models.tuners.soft_prompt_model", "MptConfig", "MptModel"),
    "unipelt": ("multitune.models.tuners.hybrid", "UniPeltConfig", "UniPeltModel"),
}
"""Method -> module, class of its config, class of its tuner."""


def register_tuners() -> None:
    """Make peft know our methods; does nothing the second time.

    Needed before `PeftModel.from_pretrained` reads an adapter of ours; what multitune loads is registered by itself.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    for name, (module_name, config, tuner) in OURS.items():
        if name.upper() in PeftType.__members__ and PeftType[name.upper()] in PEFT_TYPE_TO_CONFIG_MAPPING:
            continue
        _add_member(PeftType, name.upper())
        module = import_module(module_name)
        register_peft_method(name=name, config_cls=getattr(module, config), model_cls=getattr(module, tuner))


def _add_member(enumeration: Any, name: str) -> None:
    """Add a member to an enumeration of strings, as its class body would have."""
    if name in enumeration.__members__:
        return
    member: Any = str.__new__(enumeration, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(enumeration.__members__)
    type.__setattr__(enumeration, name, member)
    enumeration._member_map_[name] = member
    enumeration._value2member_map_[name] = member
    enumeration._member_names_.append(name)
