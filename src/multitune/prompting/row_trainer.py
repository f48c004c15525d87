"""transformers' Trainer over micro-batches that are pure functions of seed and place, with checkpoints without pickle.

It goes on after a stop with the weights of an undisturbed run: data and masks depend on the place alone, and dropout's
generator lies in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from multitune.errors import MultituneError
from multitune.mixing.shuffling import permuted, seed_of
from multitune.prompting.config import FineTuning, Pretraining
from multitune.training import checkpoints
from multitune.training.interrupts import Interrupted, stop_on_signals
from multitune.training.logs import JsonLinesLog
from multitune.training.train import StopAtStepEnd

logger = logging.getLogger("multitune.prompting")

Batch = dict[str, Tensor]


class Make(Protocol):
    """Makes a micro-batch of the rows at some places; the seed is of whatever is random in it."""

    def __call__(self, rows: Sequence[int], seed: int) -> Batch: ...


class MicroBatches(Dataset[Batch]):
    """The micro-batches of a run: every epoch shuffles the rows anew, and a batch may reach into the next epoch.

    Args:
        rows: number of rows.
        size: rows of a micro-batch.
        length: number of micro-batches.
        make: what lays them out.
        seed: of the order and of what is random in a batch.
    """

    def __init__(self, rows: int, size: int, length: int, make: Make, seed: int) -> None:
        self.rows, self.size, self.length, self.make, self.seed = rows, size, length, make, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        import numpy as np

        drawn = []
        for place in range(index * self.size, (index + 1) * self.size):
            epoch, within = divmod(place, self.rows)
            key = np.array([seed_of("epoch", epoch, self.seed)], dtype=np.uint64)
            drawn.append(int(permuted(np.array([within]), np.array([self.rows]), key)[0]))
        return self.make(drawn, seed_of("batch", index, self.seed) % 2**63)


@dataclass(frozen=True)
class Look:
    """What is looked at during training.

    Attributes:
        measure: returns a number of the model as it is.
        name: of the number, for the log.
        every: steps between looks.
        larger_is_better: whether the best is the largest.
    """

    measure: Callable[[], float]
    name: str
    every: int
    larger_is_better: bool


@dataclass(frozen=True)
class Trained:
    """What a training says of itself.

    Attributes:
        steps: optimiser steps of the whole run.
        best: the best look's number; None without looks.
        best_step: where it was.
    """

    steps: int
    best: float | None = None
    best_step: int | None = None


def train_rows(
    losses: nn.Module,
    rows: int,
    make: Make,
    config: FineTuning | Pretraining,
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    identity: str,
    look: Look | None = None,
) -> Trained:
    """Train a module that returns a loss, in place; go on where a run of the same identity was stopped.

    With looks, the weights of the best one are left in the module, also where the last step was not looked at.

    Args:
        losses: called with a micro-batch; returns an output with ``loss``, the mean over its labels.
        rows: number of rows.
        make: lays out a micro-batch.
        config: batches, optimiser, checkpoints.
        folder: receives ``log.jsonl``, ``checkpoints/`` and the best weights.
        steps: optimiser steps; 0 trains nothing and draws nothing.
        learning_rate: the largest.
        seed: of order, masks and dropout.
        identity: of everything that determines the weights at the start and the rows.
        look: what is measured on the way.

    Raises:
        MultituneError: no rows, or a loss that is not finite.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is whole.
    """
    if steps == 0:
        return Trained(0)
    if not rows:
        raise MultituneError("There are no rows to train on.", str(folder), "Give some.")
    settings = config.model_dump_json(exclude={"save_every", "learning_rates", "epochs"})
    digest = hashlib.sha256(json.dumps([identity, settings, steps, learning_rate, seed]).encode()).hexdigest()
    resume = checkpoints.find_checkpoint(folder / "checkpoints", digest)
    resumed_step = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    if resume:
        logger.info("%s goes on from step %d", folder.name, resumed_step)
    keeper = KeepBest(losses, look, folder, resumed_step) if look else None
    batches = MicroBatches(rows, config.batch_size, steps * config.accumulation, make, seed)
    arguments = _arguments(losses, config, folder, steps, learning_rate, seed)
    with stop_on_signals() as request:
        stopper = StopAtStepEnd(request)
        callbacks: list[TrainerCallback] = [*([keeper] if keeper else []), stopper]
        trainer = RowTrainer(
            losses, arguments, batches, JsonLinesLog(folder / "log.jsonl", resumed_step), digest, callbacks
        )
        if resume and resumed_step >= steps:
            checkpoints.load_weights(resume, losses)
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if stopper.stopped and trainer.state.global_step < steps:
        raise Interrupted(trainer.state.global_step, folder / "checkpoints")
    losses.eval()
    return keeper.finish(steps) if keeper else Trained(steps)


def _arguments(
    losses: nn.Module, config: FineTuning | Pretraining, folder: Path, steps: int, learning_rate: float, seed: int
) -> TrainingArguments:
    device = next(losses.parameters()).device
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        adam_epsilon=config.adam_epsilon,
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        logging_steps=max(1, min(50, steps // 10)),
        logging_nan_inf_filter=False,
        save_steps=config.save_every,
        save_total_limit=2,
        report_to="none",
        seed=seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=device.type != "cuda",
        dataloader_pin_memory=False,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several would mean DataParallel, whose replicas share one output layer
    return arguments


class RowTrainer(Trainer):
    """The Trainer with our data order, our log and our checkpoints.

    Args:
        model: returns an output with ``loss``.
        args: of the Trainer.
        batches: one item is one micro-batch.
        lines: the log.
        fingerprint: of what determines the run, kept in the checkpoints.
        callbacks: beside the Trainer's own.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        batches: MicroBatches,
        lines: JsonLinesLog,
        fingerprint: str,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model, args, train_dataset=batches, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.losses, self.batches, self.lines, self.fingerprint = model, batches, lines, fingerprint
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the labels of a whole step

    def get_train_dataloader(self) -> DataLoader:
        """One item is one micro-batch, in its order."""
        return DataLoader(self.batches, batch_size=1, collate_fn=_only_item, shuffle=False)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the micro-batch's part of the step's loss: the sum over its labels by the number of all of them."""
        labels = int((inputs["labels"] != -100).sum())
        loss = model(**inputs).loss * labels / max(int(num_items_in_batch), 1)
        if not math.isfinite(float(loss.detach())):
            raise MultituneError(
                "The loss is not a finite number.",
                f"training step {self.state.global_step + 1}",
                "Lower the learning rate and run again.",
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the record to the log file and say the loss."""
        super().log(logs, start_time)
        if "loss" in logs:
            step = self.state.global_step
            self.lines.write({"step": step, **{name: float(value) for name, value in logs.items()}})
            logger.info(
                "%s: step %d of %d, loss %.4f", self.lines.path.parent.name, step, self.args.max_steps, logs["loss"]
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.args.output_dir is not None and self.optimizer is not None
        folder = Path(self.args.output_dir)
        state = {name: value for name, value in vars(self.state).items() if not name.startswith("_")}
        random = {"cpu": torch.get_rng_state()[None]}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()[None]
        checkpoints.write_checkpoint(
            folder / f"checkpoint-{self.state.global_step}",
            model=self.losses,
            optimizer=self.optimizer,
            schedule=self.lr_scheduler,
            balancer={},
            random_states=random,
            trainer_state=json.dumps(state | {"stateful_callbacks": {}}),
            fingerprint=self.fingerprint,
        )
        checkpoints.remove_old_checkpoints(folder, self.args.save_total_limit or 2)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), self.losses)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = checkpoints.load_random_states(Path(checkpoint))
        torch.set_rng_state(states["cpu"][0].clone())
        if torch.cuda.is_available() and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"][0].clone())


class KeepBest(TrainerCallback):
    """Measures the model now and then, and keeps the weights of the best time.

    Args:
        losses: the module that trains.
        look: what is measured.
        folder: receives ``best.safetensors`` and ``looks.json``.
        step: the run goes on from here; later looks of before are forgotten.
    """

    def __init__(self, losses: nn.Module, look: Look, folder: Path, step: int) -> None:
        self.losses, self.look, self.folder = losses, look, folder
        self.seen: list[tuple[int, float]] = []
        file = folder / "looks.json"
        if step and file.exists():
            self.seen = [(at, value) for at, value in json.loads(file.read_text()) if at <= step]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look, where it is time."""
        if state.global_step % self.look.every == 0 or state.global_step >= state.max_steps:
            self._see(state.global_step)

    def _see(self, step: int) -> None:
        training = self.losses.training
        self.losses.eval()
        value = self.look.measure()
        self.losses.train(training)
        self.seen.append((step, value))
        if self.best == (step, value):
            partial = self.folder / "best.partial"
            save_file({name: t.contiguous() for name, t in checkpoints.trainable_state(self.losses).items()}, partial)
            partial.replace(self.folder / "best.safetensors")
        partial = self.folder / "looks.partial"
        partial.write_text(json.dumps(self.seen))
        partial.replace(self.folder / "looks.json")
        logger.info("%s: step %d, %s %.4f", self.folder.name, step, self.look.name, value)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best look; of equals the first."""
        sign = 1 if self.look.larger_is_better else -1
        return max(self.seen, key=lambda seen: (sign * seen[1], -seen[0]), default=None)

    def finish(self, steps: int) -> Trained:
        """Give the module the weights of the best look."""
        assert self.best is not None
        saved = load_file(self.folder / "best.safetensors")
        for name, tensor in checkpoints.trainable_state(self.losses).items():
            tensor.copy_(saved[name])
        step, value = self.best
        return Trained(steps, value, step)


def _only_item(items: list[Batch]) -> Batch:
    return items[0]
