"""What is learned: a task binds data, templates and judgement; an example is one record of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

Kind = Literal["label", "choose", "generate", "regress"]
"""How a task is answered: a fixed set of labels, choices of each example's own, free text, or a number."""

Form = Literal["causal", "seq2seq", "encoder"]
"""What sort of backbone reads a task: a causal LM, an encoder-decoder LM, or an encoder with one head per task."""

Split = Literal["train", "validation", "test"]

Layout = Literal["auto", "fields", "messages", "sharegpt", "alpaca", "prompt_completion", "input_target", "text_label"]


def _listed(value: Any) -> Any:
    """Let a single template or name stand where several may."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Source(BaseModel):
    """Where rows come from: a path, a hub data set, or a Python generator; exactly one, unless ``fraction`` is given.

    In YAML a plain string is a path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="file, folder or glob, relative to the recipe's folder")
    hub: str | None = Field(None, description="data set id for datasets.load_dataset")
    name: str | None = Field(None, description="configuration of the hub data set")
    split: str | None = Field(None, description="split of the hub data set or of a saved DatasetDict")
    generator: str | None = Field(None, description="'package.module:function', or 'synthetic:SKILL'")
    arguments: dict[str, Any] = Field({}, description="keyword arguments of the generator")
    rows: PositiveInt | None = Field(None, description="read at most so many rows")
    fraction: float | None = Field(None, gt=0, lt=1, description="validation or test: this share of train's rows")

    @model_validator(mode="before")
    @classmethod
    def _path_as_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        given = [key for key in ("path", "hub", "generator", "fraction") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"a source needs exactly one of path, hub, generator or fraction, not {given or 'none'}")
        return self


class Task(BaseModel):
    """A task: name, source, templates, kind, metrics, tags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    train: Source | None = None
    validation: Source | None = None
    test: Source | None = None
    kind: Kind | None = Field(None, description="inferred from the rows when not given, and said aloud")
    layout: Layout = "auto"
    prompt: Texts = Field((), description="Jinja2 templates over an example's fields; several are paired with target")
    target: Texts = ()
    choices: tuple[str, ...] | dict[str, str] | str | None = Field(
        None, description="label: the choices, or raw label -> text; choose: the field that lists them"
    )
    metrics: Texts = Field((), description="names of metrics; empty means the kind's default")
    weight: NonNegativeFloat = Field(1.0, description="loss weight among the tasks")
    tags: dict[str, str] = {}
    held_out: bool = Field(False, description="scored, never trained on")
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    chat: Literal["auto", "always", "never"] = Field("auto", description="when to use the tokenizer's chat template")
    max_new_tokens: PositiveInt = 64
    stop: Texts = ()

    def source(self, split: Split) -> Source | None:
        """Return the source of a split, None when the task has none."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task as the source gave it.

    Attributes:
        id: stable over runs and machines, unique in the task: "<file name>:<row>" or the generator's own id.
        where: for people: "data/train.jsonl:12".
        fields: the record.
    """

    id: str
    where: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompted:
    """An example through one of its task's templates.

    Attributes:
        example: the record.
        template: index of the template.
        prompt: rendered prompt; "" when messages are given.
        messages: the chat; () unless the rows are chats. The final assistant turn is the target in scoring.
        target: text of the target; "" is allowed for regress.
        choices: texts of the choices (label, choose), else ().
        label: index of the right choice, or None.
        value: the number to predict (regress), or None.
    """

    example: Example
    template: int
    prompt: str
    messages: tuple[Message, ...]
    target: str
    choices: tuple[str, ...]
    label: int | None
    value: float | None
