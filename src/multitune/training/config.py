"""What a recipe may say about training."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from multitune.objectives.balancing.config import BalancerConfig
from multitune.objectives.focal_config import FocalConfig

WITHOUT_WEIGHTS = ("token_mean", "sample_mean")
"""Aggregations in which tasks have no weight of their own."""


class TrainingConfig(BaseModel):
    """Length, batches, optimiser, loss and bookkeeping of one train step.

    A row is a packed row of up to ``max_length`` tokens for causal models, and one example otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveFloat | None = Field(None, description="passes over all tasks' rows together; default 1")
    steps: PositiveInt | None = Field(None, description="optimiser steps, instead of epochs")
    examples: PositiveInt | None = Field(None, description="examples drawn from the mixture, instead of epochs")

    batch_size: PositiveInt = Field(32, description="rows per optimiser step, over all processes")
    micro_batch_size: PositiveInt | None = Field(None, description="rows per forward pass; default min(batch_size, 8)")
    max_length: PositiveInt = Field(512, description="tokens per row; longer examples follow on_overlong")
    on_overlong: Literal["truncate", "drop", "refuse"] = "truncate"
    pack: Literal["auto", "always", "never"] = Field("auto", description="several examples per row, isolated exactly")

    aggregation: Literal["token_mean", "sample_mean", "task_token_mean", "task_sample_mean"] = Field(
        "task_token_mean", description="how token losses become one number (MFTCoder cases 1-4)"
    )
    task_weights: dict[str, NonNegativeFloat] = Field({}, description="loss weight per task; 1 where not given")

    focal: FocalConfig | None = Field(
        None, description="scales down what is easy already; needs the aggregation task_sample_mean"
    )
    balancer: BalancerConfig | None = Field(
        None, description="weighs the tasks anew as training goes, on top of task_weights; default: fixed weights"
    )

    routing_learning_rate: PositiveFloat | None = Field(
        None, description="of the weights by which tasks mix modules (adapt: mhr); default: 100 times learning_rate"
    )
    routing_annealing_steps: NonNegativeInt = Field(
        0, description="last steps, in which all tasks' mixtures become the average of the modules (adapt: mhr)"
    )
    prompt_learning_rate: PositiveFloat | None = Field(
        None, description="of the prompt that dept and ept learn; default: 100 times learning_rate"
    )
    router_loss: NonNegativeFloat | None = Field(
        None, description="weight of the load-balancing loss of a model with experts; default: as its config asks"
    )

    learning_rate: PositiveFloat | None = Field(None, description="default 2e-4 for adapters, 2e-5 for full")
    schedule: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial", "cosine_with_restarts"
    ] = Field("cosine", description="a scheduler of transformers")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps spent warming up")
    optimizer: Literal[
        "adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_bnb_8bit",
        "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit",
    ] = Field("adamw_torch_fused", description="an optimiser of transformers.TrainingArguments")  # fmt: skip
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    adam_betas: tuple[float, float] = (0.9, 0.999)

    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of products; auto: bfloat16 on a GPU that has it, float32 on a CPU"
    )
    gradient_checkpointing: bool = False
    compile: bool = Field(False, description="torch.compile")
    liger: Literal["auto", "never"] = Field("auto", description="Liger kernels when a GPU and the package are present")

    eval_steps: PositiveInt | None = Field(
        None, description="steps between evaluations of every task's validation loss; default: none during training"
    )
    eval_rows: PositiveInt | None = Field(200, description="validation rows per task at each; null: all")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="evaluations without a lower mean validation loss after which training stops"
    )
    load_best_model_at_end: bool = Field(False, description="end with the weights of the lowest mean validation loss")

    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 200
    save_total_limit: PositiveInt = 2
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [name for name in ("epochs", "steps", "examples") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both set the length of training; keep one of them")
        if self.task_weights and self.aggregation in WITHOUT_WEIGHTS:
            raise ValueError(f"task_weights have no effect with the aggregation {self.aggregation}; use a task mean")
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, name) and self.eval_steps is None:
                raise ValueError(f"{name} needs validation losses; set eval_steps too")
            if getattr(self, name) and self.routing_annealing_steps:
                raise ValueError(f"annealed mixtures end at the last step; take {name} or routing_annealing_steps out")
        if self.focal and self.aggregation != "task_sample_mean":
            raise ValueError(f"a focal loss scales task_sample_mean, not {self.aggregation}; set aggregation so")
        if self.focal and self.balancer and self.balancer.needs_gradients:
            raise ValueError(f"{self.balancer.method} combines the gradients of plain losses; take focal out")
        if self.balancer and self.aggregation not in ("task_token_mean", "task_sample_mean"):
            raise ValueError(f"a balancer has no effect with the aggregation {self.aggregation}; use a task mean")
        if self.balancer and self.balancer.needs_gradients and self.precision == "float16":
            raise ValueError(
                f"{self.balancer.method} combines gradients, which float16 scales; use bfloat16 or float32"
            )
        if self.rows_per_forward > self.batch_size or self.batch_size % self.rows_per_forward:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.rows_per_forward}; "
                "choose one that divides it"
            )
        return self

    @property
    def uses_validation(self) -> bool:
        """Whether training looks at validation rows."""
        return self.eval_steps is not None or (self.balancer is not None and self.balancer.needs_validation)

    @property
    def rows_per_forward(self) -> int:
        """Rows per forward pass: micro_batch_size, or the largest divisor of batch_size that is at most 8."""
        return self.micro_batch_size or max(n for n in range(1, 9) if self.batch_size % n == 0)

    def shared_by(self, processes: int) -> TrainingConfig:
        """Return the configuration of each of several processes: an open micro_batch_size fits their number.

        Where batch_size cannot be shared at all it is returned as it is.
        """
        rows = [n for n in range(1, 9) if self.batch_size % (n * processes) == 0]
        return self if self.micro_batch_size or not rows else self.model_copy(update={"micro_batch_size": rows[-1]})
