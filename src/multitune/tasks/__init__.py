"""What is learned: tasks, their sources and templates, and the metrics that judge them."""

from __future__ import annotations

from multitune.tasks.bad_rows import BadRows
from multitune.tasks.layouts import recognise
from multitune.tasks.prompting import is_resolved, prompted_examples, resolve
from multitune.tasks.sources import read_examples, source_files, source_fingerprint
from multitune.tasks.task import Example, Form, Kind, Message, Prompted, Source, Split, Task

# `multitune.tasks.metrics` is imported by itself, because it loads NumPy.
__all__ = [
    "BadRows",
    "Example",
    "Form",
    "Kind",
    "Message",
    "Prompted",
    "Source",
    "Split",
    "Task",
    "is_resolved",
    "prompted_examples",
    "read_examples",
    "recognise",
    "resolve",
    "source_files",
    "source_fingerprint",
]
