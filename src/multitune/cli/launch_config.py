"""`multitune launch-config NAME`: a configuration for `accelerate launch`, to keep beside the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path(__file__).parents[1] / "training" / "launch"


def launch_config(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ddp, fsdp2 or deepspeed.")],
) -> None:
    """Print a configuration for `accelerate launch --config_file FILE -m multitune run RECIPE`."""
    from multitune.errors import MultituneError, nearest

    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise MultituneError(
            f"There is no launch configuration '{name}'.{nearest(name, known)}",
            "launch-config",
            f"Use one of: {', '.join(known)}.",
        )
    typer.echo((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), nl=False)
