"""The command line: one file per verb; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from multitune import __version__
from multitune.cli import (
    check,
    cocktail,
    compare_methods,
    contamination,
    evaluate_code,
    export_harness,
    extract_lora,
    init,
    launch_config,
    learning_curve,
    merge,
    methods,
    predict,
    prompt_tune,
    quickstart,
    report,
    reproduce,
    run,
    schema,
    score,
    suite,
    systems,
    transfer,
)
from multitune.cli.failures import told

app = typer.Typer(
    name="multitune",
    help="Adapt one pretrained model to many tasks, and see what every task gained and lost.",
    no_args_is_help=True,
    # Plain help: rich's renderer doubles the time of `multitune --help`.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("score")(score.score)
app.command("suite")(suite.suite)
app.command("export-harness")(export_harness.export_harness)
app.command("contamination")(contamination.contamination)
app.command("predict")(predict.predict)
app.command("prompt-tune")(prompt_tune.prompt_tune)
app.command("report")(report.report)
app.command("merge")(merge.merge)
app.command("extract-lora")(extract_lora.extract_lora)
app.command("methods")(methods.methods)
app.command("compare-methods")(compare_methods.compare_methods)
app.command("evaluate-code")(evaluate_code.evaluate_code)
app.command("transfer")(transfer.transfer)
app.command("cocktail")(cocktail.cocktail)
app.command("learning-curve")(learning_curve.learning_curve)
app.command("quickstart")(quickstart.quickstart)
app.command("schema")(schema.schema)
app.command("launch-config")(launch_config.launch_config)
app.command("systems")(systems.systems)
app.command("reproduce")(reproduce.reproduce)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"multitune {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of any failure (allowed after a verb too).")
    ] = False,
) -> None:
    """Adapt one pretrained model to many tasks, and see what every task gained and lost."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a failure of ours, 2 the user's mistake, 130 interrupted.

    Args:
        arguments: the words after the program's name; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb_words = [word for word in words if word != "--debug"]
    command = typer.main.get_command(app)
    sys.exit(
        told(
            lambda: command.main(args=verb_words, prog_name="multitune", standalone_mode=False),
            json="--json" in words,
            debug="--debug" in words,
            verb=next((word for word in words if not word.startswith("-")), ""),
        )
    )
