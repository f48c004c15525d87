"""What is learned: a task binds data, templates and judgement; an example is one record of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
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


def _as_choice(value: Any) -> Any:
    """A choice as text: numbers become what a template prints for them."""
    if isinstance(value, bool):
        raise ValueError(f"the choice {value} is a yes/no value of YAML, not text; write it in quotes")
    return str(value).strip() if isinstance(value, str | int | float) else value


def _as_choices(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_as_choice(label): _as_choice(text) for label, text in value.items()}
    return tuple(_as_choice(item) for item in value) if isinstance(value, list | tuple) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Choices = Annotated[tuple[str, ...] | dict[str, str] | str, BeforeValidator(_as_choices)]


class Source(BaseModel):
    """Where rows come from: a path, a hub data set, a Python generator, or a share of the task's train rows.

    Exactly one of ``path``, ``hub``, ``generator`` and ``fraction``. In YAML a plain string is a path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="file, folder or glob, relative to the recipe's folder")
    hub: str | None = Field(None, description="data set id for datasets.load_dataset")
    name: str | None = Field(None, description="configuration of the hub data set")
    split: str | None = Field(None, description="split of the hub data set or of a saved DatasetDict")
    revision: str | None = Field(None, description="commit, tag or branch of the hub data set")
    generator: str | None = Field(None, description="'package.module:function', 'synthetic:SKILL' or 'gpt3:TASK'")
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
            found = " and ".join(given) or "none"
            raise ValueError(f"a source needs exactly one of path, hub, generator and fraction, and has {found}")
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
    choices: Choices | None = Field(
        None, description="label: the choices, or raw label -> text; choose: the field that lists them"
    )
    answer_choices: Texts = Field(
        (),
        description="per prompt, or one for all: a template of a row's answers with ||| between; prompt and target see "
        "them as the list answer_choices, and so does choices: answer_choices",
    )
    prompt_names: Texts = Field((), description="names of the prompts, for tables; else they are numbered from 1")
    prompt_field: str | None = Field(
        None, description="the field of a training row that names its prompt, instead of drawing one"
    )
    train_shots: NonNegativeInt = Field(
        0, description="solved rows before a training row: 0 to so many are drawn for each; only its own target trains"
    )
    continuation: str | None = Field(
        None,
        description="label, choose: template of the text after a choice; choices are compared by its probability",
    )
    metrics: Texts = Field((), description="names of metrics; empty means the kind's default")
    weight: NonNegativeFloat = Field(1.0, description="loss weight among the tasks")
    tags: dict[str, str] = {}
    held_out: bool = Field(False, description="scored, never trained on")
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    chat: Literal["auto", "always", "never"] = Field("auto", description="when to use the tokenizer's chat template")
    max_new_tokens: PositiveInt = 64
    stop: Texts = ()
    references: str | None = Field(
        None, description="generate: the field that lists all right answers, of which the best counts in metrics"
    )
    program: str | None = Field(
        None, description="generate: template of a program that tests an answer, {{ completion }}; run by evaluate-code"
    )
    cases: str | None = Field(
        None,
        description="generate: the field with an answer's test cases, {inputs, outputs, fn_name}; run by evaluate-code",
    )

    @model_validator(mode="after")
    def _fractions_of_train(self) -> Task:
        shares = [source.fraction or 0 for source in (self.validation, self.test) if source is not None]
        if self.train is not None and self.train.fraction is not None:
            raise ValueError("fraction cuts validation or test from train; train needs a path, hub or generator")
        if any(shares) and self.train is None:
            raise ValueError("fraction cuts rows from train, and the task has no train")
        if sum(shares) >= 1:
            raise ValueError("the fractions of validation and test leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _templates_in_pairs(self) -> Task:
        if len(self.target) > 1 and self.prompt and len(self.prompt) != len(self.target):
            raise ValueError(
                f"prompts and targets are paired: {len(self.prompt)} prompts do not go with {len(self.target)} targets"
            )
        for key, names in (("answer_choices", self.answer_choices), ("prompt_names", self.prompt_names)):
            if names and len(names) != len(self.prompt) and (key == "prompt_names" or len(names) > 1):
                raise ValueError(f"{key} go with the prompts: {len(names)} do not go with {len(self.prompt)}")
        if len(set(self.prompt_names)) < len(self.prompt_names):
            raise ValueError("prompt_names name two prompts alike")
        if self.answer_choices and self.kind in ("label", "regress"):
            raise ValueError(f"answer_choices are for kinds choose and generate, not {self.kind}")
        if (self.prompt or self.target) and self.layout in ("messages", "sharegpt"):
            raise ValueError(f"rows of layout {self.layout} are chats, which take no prompt and no target template")
        return self

    @model_validator(mode="after")
    def _program_of_a_text(self) -> Task:
        for key in ("program", "cases", "references"):
            if getattr(self, key) is not None and self.kind not in (None, "generate"):
                raise ValueError(f"{key} tests what a model writes; a task of kind {self.kind} has nothing to run")
        return self

    @model_validator(mode="after")
    def _choices_fit_kind(self) -> Task:
        if self.continuation is not None and self.kind not in ("label", "choose"):
            raise ValueError("a continuation is what follows a choice: it needs kind label or choose")
        if self.choices is None:
            return self
        if self.kind in ("generate", "regress"):
            raise ValueError(f"choices are for kinds label and choose, not {self.kind}")
        if self.kind == "label" and isinstance(self.choices, str):
            raise ValueError(
                "choices of kind label are a list, or a mapping from label to text; for a field use choose"
            )
        if self.kind == "choose" and not isinstance(self.choices, str):
            raise ValueError("choices of kind choose name the field that lists them; for a fixed list use kind label")
        if not self.choices or (not isinstance(self.choices, str) and not all(self.choice_texts)):
            raise ValueError("choices are empty, or one of them is")
        if isinstance(self.choices, tuple) and len(set(self.choices)) < len(self.choices):
            raise ValueError("a choice is listed twice")
        return self

    @property
    def choice_texts(self) -> tuple[str, ...]:
        """Texts of the fixed choices, in order and each once; () for the kinds without."""
        if isinstance(self.choices, str) or self.choices is None:
            return ()
        return tuple(dict.fromkeys(self.choices.values() if isinstance(self.choices, dict) else self.choices))

    def prompt_name(self, template: int) -> str:
        """Return the name of a prompt: its own, or its number from 1."""
        return self.prompt_names[template] if self.prompt_names else str(template + 1)

    def source(self, split: Split) -> Source | None:
        """Return the source of a split, None when the task has none."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a task as the source gave it.

    Attributes:
        id: stable over runs and machines, unique in its source: "<file name>:<line>", "<file name>:row <row>" or the
            generator's own id.
        where: for people: "data/train.jsonl:12", or "data/train.parquet:row 12" where there are no lines.
        fields: the record.
    """

    id: str
    where: str
    fields: dict[str, Any]

    @property
    def content(self) -> str:
        """The record as JSON with sorted keys: the same wherever it stands, whatever its file is called."""
        return json.dumps(self.fields, sort_keys=True, ensure_ascii=False, default=str)


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
        messages: the chat, ended by the assistant's turn that is the target; () unless the rows are chats.
        target: text of the target; of a label or choose task exactly the right one of the choices.
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
