"""Prompt-based fine-tuning from a YAML file: which model, which prompt, which rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from multitune.errors import MultituneError, nearest
from multitune.models.config import ModelConfig
from multitune.prompting.config import FineTuning, Pretraining, Way
from multitune.recipes.reading import override, read_yaml
from multitune.recipes.schema_errors import schema_errors
from multitune.tasks.task import Example, Source

if TYPE_CHECKING:
    from multitune.prompting.pipeline import Data, Labelled, Prompt


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptConfig(_Part):
    """What is asked: a shipped prompt by its name, or a template and the words of its labels.

    Attributes:
        name: of a shipped prompt (sst-2, mnli, ...), with ``fields`` of the rows in place of its own.
        template: ``{field}`` and ``<mask>`` once.
        words: by label, each one token.
        bounds: lowest and highest value of a regression, whose two words are given low first.
        soft: template and label words become tokens of their own.
    """

    name: str | None = None
    fields: tuple[str, ...] = ("text",)
    template: str | None = None
    words: dict[str, str] | None = None
    bounds: tuple[float, float] | None = None
    soft: bool = False

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> PromptConfig:
        if (self.name is None) == (self.template is None) or (self.template is None) != (self.words is None):
            raise ValueError("a prompt needs either a name, or a template and words")
        if self.bounds is not None and (self.words is None or len(self.words) != 2):
            raise ValueError("bounds are of a regression, which has a template of its own and two words")
        return self


class DataConfig(_Part):
    """Where rows come from.

    Attributes:
        train, validation, test: labelled.
        unlabelled: without labels, or with labels that are not read. None: the training rows that ``shots`` leaves
            over; without ``shots`` the training rows with their own labels.
        label: field of the label.
        shots: so many rows per class of ``train`` are the labelled ones, and as many others choose where there is no
            ``validation``.
    """

    train: Source
    validation: Source | None = None
    test: Source | None = None
    unlabelled: Source | None = None
    label: str = "label"
    shots: PositiveInt | None = None


class PromptFile(_Part):
    """Everything that `multitune prompt-tune` is told.

    Attributes:
        model: a masked language model, or a causal one.
        prompt, data: what is asked of which rows.
        way: what stands before the fine-tuning: ``pcp`` (texts in the prompt, with labels), ``tapt`` (raw texts) or
            ``none``.
        fine_tuning, pretraining: how.
        held_out: share of the unlabelled rows on which the pre-training's loss is looked at.
        seed: of everything that is drawn.
    """

    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    way: Way = "pcp"
    fine_tuning: FineTuning = FineTuning()
    pretraining: Pretraining = Pretraining()
    held_out: float = Field(0.1, gt=0, lt=1)
    seed: int = 0


def read_prompt_file(path: Path, assignments: Sequence[str] = ()) -> PromptFile:
    """Return what a file says; folders in it are relative to it where they stand there.

    Args:
        path: YAML.
        assignments: ``key=value`` for any key.

    Raises:
        MultituneErrors: everything that is wrong, with lines.
    """
    document = read_yaml(path)
    override(document, list(assignments))
    try:
        told = PromptFile.model_validate(document.data)
    except ValidationError as error:
        raise schema_errors(error, document, schema=PromptFile.model_json_schema()) from None
    beside = path.resolve().parent / told.model.name
    if beside.is_dir():
        told = told.model_copy(update={"model": told.model.model_copy(update={"name": str(beside)})})
    return told


def prompt_tune(told: PromptFile, folder: Path, out: Path) -> dict[str, Any]:
    """Do all stages and return what each found; see `multitune.prompting.pipeline.pcp_pipeline`.

    Args:
        told: by a file.
        folder: that its data are relative to.
        out: of the stages.
    """
    from multitune.models.pretrained import model_form
    from multitune.prompting.pipeline import pcp_pipeline
    from multitune.recipes.run_folder import locked

    form = model_form(told.model)
    if form == "seq2seq":
        raise MultituneError(
            "An encoder-decoder model fills no single mask.", f"model {told.model.name}", "Take a masked or causal one."
        )
    prompt = prompt_of(told.prompt, causal=form == "causal")
    data = _data(told, prompt, folder)
    with locked(out):
        return pcp_pipeline(
            told.model,
            prompt,
            data,
            told.fine_tuning,
            told.pretraining,
            out,
            seed=told.seed,
            way=told.way,
            held_out=told.held_out,
        )


def prompt_of(told: PromptConfig, *, causal: bool) -> Prompt:
    """Return template and verbaliser.

    Raises:
        MultituneError: an unknown name, a template without mask or field, words that are no verbaliser.
    """
    from multitune.prompting.pipeline import Prompt
    from multitune.prompting.shipped import shipped_prompt
    from multitune.prompting.template import parse_template
    from multitune.prompting.verbalizer import classes, regression

    if told.name is not None:
        return Prompt(*shipped_prompt(told.name, told.fields, soft=told.soft), soft=told.soft, causal=causal)
    assert told.template is not None and told.words is not None
    if told.bounds is not None:
        low, high = told.words.values()
        verbalizer = regression(low, high, *told.bounds)
    else:
        verbalizer = classes(told.words)
    return Prompt(parse_template(told.template), verbalizer, soft=told.soft, causal=causal)


def _data(told: PromptFile, prompt: Prompt, folder: Path) -> Data:
    from multitune.prompting.pipeline import Data

    config = told.data
    train: Labelled = _labelled("train", config.train, prompt, config, folder)
    validation: Labelled = _labelled("validation", config.validation, prompt, config, folder)
    test = _labelled("test", config.test, prompt, config, folder)
    unlabelled = [example.fields for example in _examples("unlabelled", config.unlabelled, folder)]
    gold: Sequence[float] | None = None
    if config.shots is not None:
        train, drawn, rest = _few(train, config.shots, prompt, told.seed)
        validation = validation if config.validation is not None else drawn
        unlabelled = unlabelled if config.unlabelled is not None else rest
    elif config.unlabelled is None:
        unlabelled, gold = [dict(row) for row in train[0]], train[1]
    _refuse_empty_classes(train, prompt)
    return Data(train, validation, unlabelled, gold, test)


def _refuse_empty_classes(train: Labelled, prompt: Prompt) -> None:
    if prompt.verbalizer.bounds is not None:
        return
    for place, label in enumerate(prompt.verbalizer.labels):
        if place not in train[1]:
            raise MultituneError(
                f"No training row has the label '{label}'.",
                "data.train",
                "Give rows of it, or take its word out of the prompt.",
            )


def _few(train: Labelled, shots: int, prompt: Prompt, seed: int) -> tuple[Labelled, Labelled, list[Any]]:
    """Return K rows per class to learn from, K others to choose by, and what is left over."""
    from multitune.prompting.sampling import k_shot

    rows, values = train
    bounds = prompt.verbalizer.bounds
    sides = [value if bounds is None else int(2 * value > sum(bounds)) for value in values]
    chosen, others = k_shot(sides, shots, seed)
    taken = {*chosen, *others}
    rest = [row for place, row in enumerate(rows) if place not in taken]
    parts = [([rows[place] for place in each], [values[place] for place in each]) for each in (chosen, others)]
    return parts[0], parts[1], rest


def _labelled(split: str, source: Source | None, prompt: Prompt, config: DataConfig, folder: Path) -> Labelled:
    """Return rows and their classes or values.

    Raises:
        MultituneError: a row without the label's field, or with a label that no word stands for.
    """
    rows: list[Any] = []
    values: list[float] = []
    read = prompt.verbalizer.index if prompt.verbalizer.bounds is None else prompt.verbalizer.value
    for example in _examples(split, source, folder):
        if config.label not in example.fields:
            raise MultituneError(
                f"The row has no field '{config.label}'.{nearest(config.label, example.fields)}",
                example.where,
                "Name the field of the label: data.label.",
            )
        rows.append(example.fields)
        values.append(float(read(example.fields[config.label], example.where)))
    return rows, values


def _examples(split: str, source: Source | None, folder: Path) -> list[Example]:
    if source is None:
        return []
    from multitune.tasks.sources import read_examples

    if source.fraction is not None:
        raise MultituneError(
            f"A share of the training rows is no source of {split} rows here.",
            f"data.{split}",
            "Name a file; or use data.shots, which leaves rows over.",
        )
    found = list(read_examples(source, folder))
    if not found:
        raise MultituneError(f"There are no {split} rows.", f"data.{split}", "Check the file.")
    return found
