"""The recipe: tasks, a model, and steps. Checked whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.continuing import continued
from multitune.adaptation.methods import CONTINUE
from multitune.adaptation.step_prompt import StepPrompt
from multitune.decoding.fusion_config import FusionConfig
from multitune.mixing.policies import MixtureConfig, Proportional
from multitune.models.config import ModelConfig
from multitune.scoring.score import ScoreConfig
from multitune.tasks.task import Task
from multitune.training.config import TrainingConfig
from multitune.weights.config import MergeConfig

BASE = "base"
"""How steps name the recipe's own model."""


class TrainStep(BaseModel):
    """Adapts a model to a mixture of tasks and leaves a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    do: Literal["train"] = "train"
    model: str = Field(
        BASE, description="base, or the step whose model is trained further; STEP.TASK of a step with tasks: each"
    )
    tasks: Literal["all", "each"] | tuple[str, ...] = Field(
        "all", description="all training tasks together, each in a model of its own, or the named ones together"
    )
    mixture: MixtureConfig = Proportional()
    adapt: AdaptationConfig = AdaptationConfig(method="lora")
    soft_prompt: StepPrompt | None = Field(
        None, description="a prompt before every training input while the model trains (ProMoT); default: none"
    )
    training: TrainingConfig = TrainingConfig()
    export: Literal["adapter", "merged", "delta"] = Field(
        "adapter",
        description="what is saved: a trained adapter, the whole model, or what half fine-tuning changed alone (delta)",
    )
    measure: bool = Field(
        True, description="after training, how many tokens per second the model reads, with its adapter and merged"
    )


class EstimatorStep(BaseModel):
    """Fits a tabular estimator to the columns of its tasks' rows and leaves it; needs no language model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    do: Literal["train"] = "train"
    estimator: Literal["rmtgb", "multitab"] = Field(
        description="rmtgb: boosted trees, one answer over many tasks; multitab: a network, an answer for each"
    )
    estimator_options: dict[str, Any] = Field({}, description="arguments of the estimator's constructor")
    tasks: Literal["all", "each"] | tuple[str, ...] = Field(
        "all", description="all training tasks in one estimator, each in one of its own, or the named ones in one"
    )
    features: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="columns that are learned from; default: all that are no task's target"
    )


class ScoreStep(ScoreConfig):
    """Scores a model beside the scores that every model gets anyway: other splits, rows, templates or shots."""

    do: Literal["score"]
    model: str = Field(BASE, description="base, a step's name, or STEP.TASK of a step with tasks: each")
    tasks: Literal["all"] | tuple[str, ...] = "all"
    curve: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="numbers of shots, scored one after the other as STEP@K-shot: a curve; instead of shots"
    )

    @model_validator(mode="after")
    def _shots_or_curve(self) -> ScoreStep:
        if self.curve and "shots" in self.model_fields_set:
            raise ValueError("shots gives one number of demonstrations and curve several; keep one of the two")
        if len(set(self.curve)) < len(self.curve):
            raise ValueError("a number of shots is listed twice in curve")
        return self

    @property
    def settings(self) -> dict[str, ScoreConfig]:
        """How the model is scored, by what is put behind the step's name: "" once, or "@4-shot" of a curve."""
        config = ScoreConfig(**self.model_dump(exclude={"do", "model", "tasks", "curve"}))
        at_shots = {f"@{shots}-shot": config.model_copy(update={"shots": shots}) for shots in self.curve}
        return at_shots or {"": config}


class FuseStep(FusionConfig):
    """Fuses a large model's logits with those of small experts (arXiv:2406.15480); leaves a file that is scored."""

    do: Literal["fuse"]
    model: str = Field(BASE, description="the large model: base, a step's name, or the folder or hub id of a model")
    small: str | None = Field(None, description="the small base, named likewise")
    experts: tuple[str, ...] = Field(
        min_length=1, description="tuned versions of the small base, named likewise; adapters or whole models"
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The large model, the small base and the experts, as the recipe names them."""
        return (self.model, *((self.small,) if self.small is not None else ()), *self.experts)


class MergeSearch(BaseModel):
    """Candidates of a merge, compared on validation rows alone; the best by the mean over tasks is the step's model.

    Attributes:
        over: values by what they are values of: ``method``, ``lines.alpha``, ``lines.beta``, or a parameter of the
            method. Every combination is a candidate.
        rows: at most so many validation rows per task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    over: dict[str, Annotated[tuple[float | str, ...], Field(min_length=1)]] = Field(min_length=1)
    rows: int | None = Field(None, ge=1)


class MergeStep(MergeConfig):
    """Merges models of one base into one (see `multitune.weights`); an encoder keeps the heads of all of them."""

    do: Literal["merge"]
    base: str | None = Field(BASE, description="what all models were tuned from: base, a step's name, or a folder")
    search: MergeSearch | None = Field(None, description="values that are tried, on validation rows alone")
    tasks: Literal["all"] | tuple[str, ...] = Field(
        "all", description="whose validation rows a search, or a method that learns from rows, looks at"
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The base and the models, as the recipe names them."""
        models = [each.model for each in self.models]
        models += [each.model for part in self.slices for each in part.sources]
        return tuple(dict.fromkeys([*([self.base] if self.base is not None else []), *models]))


STEPS: dict[str, type[BaseModel]] = {"train": TrainStep, "score": ScoreStep, "fuse": FuseStep, "merge": MergeStep}
BY_ESTIMATOR = "train by an estimator"
"""The tag of train steps that name one; no key of a recipe."""

LATER = ("select", "synthesize")
"""Steps that the design names and this version does not have."""


def _kind_of_step(value: Any) -> str | None:
    """Return the tag of a step; without ``do`` it trains. None for what is no step at all."""
    if isinstance(value, EstimatorStep) or (
        isinstance(value, dict) and {"estimator", "estimator_options"} & set(value)
    ):
        return BY_ESTIMATOR
    do = value.get("do", "train") if isinstance(value, dict) else getattr(value, "do", None)
    return do if do in STEPS else None


Step = Annotated[
    Annotated[TrainStep, Tag("train")]
    | Annotated[EstimatorStep, Tag(BY_ESTIMATOR)]
    | Annotated[ScoreStep, Tag("score")]
    | Annotated[FuseStep, Tag("fuse")]
    | Annotated[MergeStep, Tag("merge")],
    Discriminator(
        _kind_of_step,
        custom_error_type="unknown_step",
        custom_error_message=f"a step's do is one of {', '.join(STEPS)}",
    ),
]


class Recipe(BaseModel):
    """One run: a model, tasks, and the steps between them. Where all steps fit estimators, there may be no model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0)
    model: ModelConfig | None = None
    tasks: dict[str, Task] = Field(min_length=1, description="task by name, or the path of a suite file")
    score: ScoreConfig | Literal[False] = Field(
        ScoreConfig(), description="how the base and every model that a step leaves are scored; false: not at all"
    )
    steps: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Step] = Field(
        {"joint": TrainStep()}, description="steps by name; without any, one train step called joint"
    )
    data_folder: str | None = Field(None, description="where the tasks' paths start; default: the recipe's own folder")
    folder: Path = Field(Path(), exclude=True, description="the same, absolute; set on loading")

    @model_validator(mode="before")
    @classmethod
    def _task_names(cls, value: Any) -> Any:
        """Tasks are named by their keys."""
        if isinstance(value, dict) and isinstance(value.get("tasks"), dict):
            tasks = {
                name: {"name": name, **task} if isinstance(task, dict) else task
                for name, task in value["tasks"].items()
            }
            return {**value, "tasks": tasks}
        return value

    @property
    def base(self) -> ModelConfig:
        """The model; only recipes of estimators alone have none, and nothing of theirs asks for it."""
        assert self.model is not None
        return self.model

    @property
    def training_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that train steps may use."""
        return tuple(name for name, task in self.tasks.items() if not task.held_out)

    def adapter_of(self, step: TrainStep) -> AdaptationConfig:
        """Return what a step trains: where it goes on with an adapter, that of the step that began it.

        ``continue`` itself where no train step of this recipe leaves the adapter.
        """
        chain = [step]
        while chain[-1].adapt.method == CONTINUE:
            before = self.steps.get(chain[-1].model.partition(".")[0])
            if not isinstance(before, TrainStep) or any(before is one for one in chain):
                return step.adapt
            chain.append(before)
        config = chain.pop().adapt
        for later in reversed(chain):
            config = continued(config, later.adapt)
        return config

    def train_steps(self) -> Iterator[tuple[str, TrainStep]]:
        """Yield the train steps by name."""
        for name, step in self.steps.items():
            if isinstance(step, TrainStep):
                yield name, step


SWEEP: dict[str, Any] = {
    "title": "Sweep",
    "type": "object",
    "description": "axes: dotted keys of the recipe, as --set takes them, to a list of values or a mapping that names "
    "them; every combination is a variant, a plain recipe without this key",
    "additionalProperties": {
        "anyOf": [
            {"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean", "null"]}},
            {"type": "object", "minProperties": 1},
        ]
    },
}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, for editors that complete and check YAML by it."""
    schema = Recipe.model_json_schema()
    schema["properties"].pop("folder", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "multitune recipe"
    schema["properties"]["sweep"] = SWEEP
    task = schema["$defs"]["Task"]
    task["properties"].pop("name")  # the key is the name
    task["required"] = [name for name in task.get("required", []) if name != "name"]
    _allow_shorthand(schema)
    return schema


def _allow_shorthand(schema: dict[str, Any]) -> None:
    """Say in the schema that a plain string stands for a model's name, a source's path, a method; and for a suite."""
    for name in ("ModelConfig", "Source", "AdaptationConfig", "MergedModel", "StepPrompt"):
        schema["$defs"][name] = {"anyOf": [{"type": "string"}, schema["$defs"][name]]}
    schema["properties"]["tasks"] = {"anyOf": [{"type": "string"}, schema["properties"]["tasks"]]}
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    for key in ("prompt", "target", "metrics", "stop", "answer_choices", "prompt_names"):
        schema["$defs"]["Task"]["properties"][key] = texts
