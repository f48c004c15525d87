"""`multitune systems`: the gallery of published systems, in the terminal and as documentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multitune.cli.run import Json

if TYPE_CHECKING:
    from multitune.systems.system import System


def systems(
    which: Annotated[
        str | None, typer.Argument(metavar="[NN|NAME]", help="A system's number or name: shows its page.")
    ] = None,
    docs: Annotated[
        Path | None, typer.Option("--docs", help="Write the gallery's pages and drawings into this folder.")
    ] = None,
    json: Json = False,
) -> None:
    """List the published systems and how they stand, or show the page of one."""
    from multitune.cli.output import answer_json, speak
    from multitune.systems import SYSTEMS, find_system

    speak()
    if docs is not None:
        written = write_docs(docs)
        answer_json({"written": written}) if json else typer.echo(f"Wrote {len(written)} files to {docs}.")
    elif which is not None:
        system = find_system(which)
        answer_json(described(system) | told(system)) if json else _show_page(system)
    elif json:
        answer_json([described(system) for system in SYSTEMS.values()])
    else:
        _show_list(list(SYSTEMS.values()))


def described(system: System) -> dict[str, Any]:
    """Return a system's card and status as JSON knows them."""
    from multitune.systems.pages import committed_result, status

    result = committed_result(system) if system.account is not None else None
    return {
        "number": system.number,
        "name": system.name,
        "title": system.title,
        "source": system.source,
        "claim": system.claim,
        "room": system.room,
        "stands": system.account is not None,
        "status": status(system),
        "verdicts": {claim["key"]: claim["verdict"] for claim in result["claims"]} if result else {},
    }


def told(system: System) -> dict[str, Any]:
    """Return what a system's page tells, as JSON knows it; nothing of one that is to come."""
    from multitune.systems.pages import committed_result

    if system.account is None:
        return {}
    account = system.account
    return {
        "published": account.published,
        "faithful": account.faithful,
        "deviates": account.deviates,
        "found": account.found,
        "used": account.used,
        "scales": {
            name: {"told": scale.told, "seeds": scale.seeds, "needs_gpu": scale.needs_gpu}
            for name, scale in account.scales.items()
        },
        "results": {name: committed_result(system, name) for name in account.scales},
    }


def write_docs(folder: Path) -> list[Path]:
    """Write the index, and a page and drawings for every system that stands; return the files."""
    from multitune.recipes.run_folder import write_whole
    from multitune.systems import SYSTEMS
    from multitune.systems.pages import committed_result, index_page, system_page

    pages = {folder / "index.md": index_page()}
    for system in SYSTEMS.values():
        if system.account is None:
            continue
        figures = {}
        for scale in system.account.scales:
            if result := committed_result(system, scale):
                figures[scale] = f"{system.slug}.svg" if scale == "small" else f"{system.slug}-{scale}.svg"
                pages[folder / figures[scale]] = drawing(result)
        pages[folder / f"{system.slug}.md"] = system_page(system, figures)
    for path, text in pages.items():
        write_whole(path, text)
    return list(pages)


def drawing(result: dict[str, Any]) -> str:
    """Return the drawing of a result's verdicts, as SVG."""
    from multitune.reporting.charts import Mark
    from multitune.reporting.claims import DrawnClaim, claims_drawing
    from multitune.systems.pages import number

    claims = []
    for claim in result["claims"]:
        interval = tuple(end for end in claim["interval"] if end is not None)
        spread = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
        defined = claim["mean"] is not None
        claims.append(
            DrawnClaim(
                title=f"{claim['key']}: {claim['measure']}",
                mark=Mark(claim["mean"], interval, tuple(claim["effects"])) if defined else None,
                threshold=claim["threshold"],
                verdict=claim["verdict"],
                told=f"{number(claim['mean'])}{spread}; line at {claim['threshold']:g}" if defined else "not defined",
            )
        )
    return claims_drawing(claims)


def _show_list(listed: list[System]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console
    from multitune.systems.pages import status

    table = Table(box=None, padding=(0, 1))
    table.add_column("", justify="right")
    for heading in ("system", "what it is for", "status"):
        table.add_column(heading)
    for system in listed:
        style = None if system.account is not None else "dim"
        table.add_row(str(system.number), system.name, system.claim, status(system), style=style)
    stdout_console().print(table)
    typer.echo("\n`multitune systems NAME` shows a page, `multitune reproduce NUMBER` runs a reproduction.")


def _show_page(system: System) -> None:
    from rich.markdown import Markdown

    from multitune.cli.output import stdout_console
    from multitune.systems.pages import system_page

    stdout_console().print(Markdown(system_page(system)))
