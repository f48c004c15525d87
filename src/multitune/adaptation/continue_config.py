"""What a recipe says of training an adapter further. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ContinueConfig(BaseModel):
    """Options of ``continue``; all others are the adapter's own and stay.

    Attributes:
        trains: of adapters that mix modules by task alone: ``all``; the ``routing`` alone (MHR-z, arXiv:2211.03831); or
            the ``average`` of the modules as plain LoRA, without routing (MHR-mu).
        tasks: names of the training's tasks; set by the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trains: Literal["all", "routing", "average"] = "all"
    tasks: tuple[str, ...] = ()
