"""Does one node in a process of its own: names, paths and plain values come in, a plain outcome goes out.

As a program it reads arguments from stdin, one line of JSON per node, and answers each with a line of JSON on stdout.
When stdin closes, whoever started it is gone or wants it to stop: it stops as on SIGTERM, after a checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import threading
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO


def do_node(
    *,
    recipe: dict[str, Any],
    folder: str,
    node: str,
    place: str,
    models: dict[str, str | None],
    inputs: str,
    log: str,
    threads: int,
) -> dict[str, Any]:
    """Do one node of a recipe and tell how it ended.

    The same function does the work of local processes and of a Ray cluster; what it leaves in ``place`` is what the
    same node leaves in a run without either.

    Args:
        recipe: as it was written, defaults left out.
        folder: what the recipe's paths are relative to.
        node: name of the node in the recipe's graph.
        place: folder of its result, prepared.
        models: folder of every model that it reads, by name; None for the recipe's own.
        inputs: its fingerprint.
        log: file that receives everything said along the way.
        threads: of torch.

    Returns:
        ``status`` (done, mistake, failure, interrupted) and ``errors``, each with what, where and mend.
    """
    if not Path(place).is_dir():
        return _outcome("mistake", "The run folder cannot be seen from where the node should run.", place, SHARED)
    with Path(log).open("a", encoding="utf-8", buffering=1) as said, redirect_stdout(said), redirect_stderr(said):
        handler = _listen(said)
        try:
            _do(recipe, folder, node, place, models, inputs, threads)
        except KeyboardInterrupt:
            return {"status": "interrupted", "errors": []}
        except Exception as error:
            return _failed(error, log)
        finally:
            logging.getLogger("multitune").removeHandler(handler)
    return {"status": "done", "errors": []}


SHARED = "Put --out, the data and the cache on a file system that all machines see under the same path."


def _do(
    recipe: dict[str, Any],
    folder: str,
    name: str,
    place: str,
    models: dict[str, str | None],
    inputs: str,
    threads: int,
) -> None:
    import torch

    from multitune.recipes.graph import build
    from multitune.recipes.node import Opened, do
    from multitune.recipes.schema import Recipe

    torch.set_num_threads(threads)
    opened = Opened(Recipe.model_validate({**recipe, "folder": folder}))
    node = next(node for node in build(opened.recipe) if node.name == name)
    folders = {read: Path(saved) if saved else None for read, saved in models.items()}
    do(node, opened, Path(place), folders, inputs)


def _listen(said: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("multitune")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler


def _failed(error: Exception, log: str) -> dict[str, Any]:
    from multitune.recipes.failures import Failure

    failure = Failure.of("", error)
    if not failure.bug:
        errors = [{"what": one.what, "where": str(one.where), "mend": one.mend} for one in failure.errors]
        return {"status": "mistake", "errors": errors}
    traceback.print_exc()
    return _outcome("failure", failure.errors[0].what, log, "Look at the traceback there; what is done is kept.")


def _outcome(status: str, what: str, where: str, mend: str) -> dict[str, Any]:
    return {"status": status, "errors": [{"what": what, "where": where, "mend": mend}]}


class _Orders:
    """The nodes that stdin names, one after the other, until it closes."""

    def __init__(self) -> None:
        self.busy = False
        self.queue: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while read := os.read(0, 65536):  # sys.stdin would be locked by this thread when the program ends
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                self.queue.put(line)
        self.queue.put(None)
        if self.busy:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Do the nodes that stdin names and answer on stdout."""
    orders = _Orders()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    while (line := orders.queue.get()) is not None:
        orders.busy = True
        arguments = json.loads(line)
        with Path(arguments["log"]).open("ab") as said:
            for output in (1, 2):  # what libraries write without Python, their last words at a crash among it
                os.dup2(said.fileno(), output)
        outcome = do_node(**arguments)
        gc.collect()  # the node's model, before the next one is loaded
        orders.busy = False
        with suppress(BrokenPipeError):  # whoever asked is gone
            answers.write(json.dumps(outcome) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
