"""MultiTaskTrainer: transformers' Trainer with the loss, the counts and the checkpoints of many tasks.

What it changes, and nothing else: where the loss comes from (token losses weighted by counts of the whole optimiser
step), what is logged (every task), and how a checkpoint is written (whole or absent, no pickle).
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from multitune.adaptation.adapting import load_rank_state, penalty, rank_state
from multitune.adaptation.updates import UpdateRule
from multitune.errors import MultituneError
from multitune.mixing.batches import TrainingBatches
from multitune.mixing.shuffling import seed_of
from multitune.objectives.aggregation import Aggregation
from multitune.objectives.focal_config import FocalConfig
from multitune.tasks.task import Form
from multitune.training import checkpoints
from multitune.training.balancing import Balancing
from multitune.training.losses import LossModule, labelled, task_losses
from multitune.training.monitor import TaskMonitor, TaskSums
from multitune.training.objective import ObserveTaskLosses, StepObjective
from multitune.training.processes import any_of, gather, is_main
from multitune.training.router_loss import RouterLoss
from multitune.training.speeds import ROUTING_SPEED, speed_up_prompts, speed_up_routing
from multitune.training.task_gradients import TaskGradients
from multitune.training.updates import follow_rule, own_optimizer

Batch = dict[str, Tensor]


class EvenBatches(Dataset[Batch]):
    """The micro-batches, filled up with empty ones to a multiple of the number of processes.

    Without them the last optimiser step would leave some processes without a forward pass, and they would wait forever
    for the others' gradients. An empty micro-batch is a copy of the last one that carries no loss.
    """

    def __init__(self, batches: TrainingBatches, processes: int, form: Form) -> None:
        self.batches, self.form = batches, form
        self.length = -(-len(batches) // processes) * processes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        batch = self._batch(index)
        return batch | labelled(batch, self.form)._asdict()

    def _batch(self, index: int) -> Batch:
        if index < len(self.batches):
            return self.batches[index]
        batch = dict(self.batches[len(self.batches) - 1])
        batch["task_ids"] = torch.full_like(batch["task_ids"], -1)
        if "labels" in batch:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch


class MultiTaskTrainer(Trainer):
    """Trains a ``LossModule`` on micro-batches that know the task of every token.

    Args:
        model: the losses of a backbone.
        args: Trainer arguments; one dataset item is one micro-batch, so the per-device batch size is 1.
        batches: the micro-batches.
        names: the mixture's task names, in the order of its task ids.
        aggregation: how token losses become one number.
        task_weights_T: non-negative weights, float32 [T].
        focal: scales what is easy down; None leaves it.
        balancing: changes the task weights as training goes; None leaves them as they are.
        router_loss: is added to the tasks' losses; None for models without.
        log: called with every log record on the main process.
        fingerprint: of everything that determines the run, kept in the checkpoints.
        routing_learning_rate: of the weights by which tasks mix modules; None: ROUTING_SPEED times the others'.
        prompt_learning_rate: of a prompt's vectors, beside what it changes of the text; None: see `speed_up_prompts`.
        update: what happens beside the optimiser's steps; None for most methods.
        masks: which entries train, by name, where the update needs them.
    """

    model: LossModule
    objective: StepObjective
    task_gradients: TaskGradients | None

    def __init__(
        self,
        model: LossModule,
        args: TrainingArguments,
        *,
        batches: TrainingBatches,
        names: Sequence[str],
        aggregation: Aggregation,
        task_weights_T: Tensor,
        focal: FocalConfig | None,
        balancing: Balancing | None,
        router_loss: RouterLoss | None,
        log: Callable[[dict[str, Any]], None],
        fingerprint: str,
        callbacks: list[TrainerCallback],
        routing_learning_rate: float | None = None,
        prompt_learning_rate: float | None = None,
        update: UpdateRule | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.routing_learning_rate, self.prompt_learning_rate = routing_learning_rate, prompt_learning_rate
        self.update, self.masks = update, masks or {}
        self.even_batches = EvenBatches(batches, args.world_size, model.form)
        super().__init__(model, args, train_dataset=self.even_batches, callbacks=callbacks)
        self.loss_is_scaled_for_ga = True  # token weights are normalised over the whole optimiser step
        self.model_accepts_loss_kwargs = False
        self.batches, self.names, self.balancing = batches, tuple(names), balancing
        self.router_loss = router_loss
        reduce = self._sum_over_processes if args.world_size > 1 else None
        self.monitor = TaskMonitor(names, args.device, reduce)
        weights_T = task_weights_T.to(args.device)
        self.objective = StepObjective(names, aggregation, weights_T, focal, balancing, self._evaluated, reduce)
        self.task_gradients = balancing.task_gradients(model, reduce) if balancing else None
        if balancing:
            self.add_callback(ObserveTaskLosses(balancing, self.objective, self.losses_on))
        self.when_optimizer_is_made: Callable[[], None] | None = None
        self._resumed_from: str | None = None
        self.write_log = log
        self.fingerprint = fingerprint
        self._tokens_since_log = torch.zeros((), dtype=torch.int64)
        self._seconds_at_log = time.monotonic()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimiser of what trains now, before the model is wrapped."""
        if self.update is not None and self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = own_optimizer(self.update, self.model, kind, options, self.args.weight_decay)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.update is not None:
            follow_rule(optimizer, self.model.model, self.update, self.masks, lambda: self.state.global_step)
        speed_up_routing(optimizer, self.model, self.routing_learning_rate or ROUTING_SPEED * self.args.learning_rate)
        speed_up_prompts(optimizer, self.model, self.prompt_learning_rate)
        if self.when_optimizer_is_made is not None:
            self.when_optimizer_is_made()
        return optimizer

    # -- data ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """One item is one micro-batch; the order is the mixture's, never shuffled here."""
        pinned = self.args.dataloader_pin_memory
        loader = DataLoader(self.even_batches, batch_size=1, collate_fn=_only_item, shuffle=False, pin_memory=pinned)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> tuple:
        """Collect one optimiser step's micro-batches and give every labelled token its weight in the step's loss."""
        batches = list(islice(epoch_iterator, num_batches))
        # the Trainer restores the generators after this; what is evaluated here must draw the same dropout
        self._load_rng_state(self._resumed_from)
        self._resumed_from = None
        self.objective.begin(batches)
        self.monitor.count(self.objective.counts)
        for batch in batches:
            # padding is no work done: an example id or the attention mask says what is a token
            tokens_BS = batch["attention_mask"] if "attention_mask" in batch else batch["example_ids"] >= 0
            self._tokens_since_log = self._tokens_since_log + tokens_BS.sum()
        self._micro_batches = self._micro_batches_left = len(batches)
        return batches, None

    # -- loss ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the micro-batch's part of the loss, times the number of processes as their gradients are averaged."""
        nll_N = self._token_losses(model, inputs)
        loss = self.objective.loss(inputs, nll_N) * self.args.world_size
        if self.router_loss is not None:
            loss = loss + self.router_loss.of_last_pass(inputs) / self._micro_batches
        more = penalty(self.model.model)
        return loss if more is None else loss + more / self._micro_batches

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward; where gradients are balanced, one backward pass for every task."""
        if self.task_gradients is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            # past DistributedDataParallel, which would wait for the one gradient that it knows of
            nll_N = self._token_losses(self.model, inputs)
            self.task_gradients.add(self.objective.task_losses(inputs, nll_N))
        loss = self.objective.loss(inputs, nll_N.detach()) * self.args.world_size
        self._micro_batches_left -= 1
        if self._micro_batches_left == 0 and self.balancing is not None:
            loss_T, present_T = self.objective.losses_of_step(), self.objective.present_T
            coefficients = partial(self.balancing.coefficients, loss_T=loss_T, present_T=present_T)
            self.task_gradients.combine(coefficients, present_T)
            if (more := penalty(self.model.model)) is not None:
                more.backward()  # belongs to no task
        return loss

    def _token_losses(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Return the losses of a micro-batch's labelled tokens, [N], and add them to what the log will say."""
        nll_N = model(inputs)
        self.monitor.add(nll_N, inputs["weight_N"], inputs["task_N"])
        # on a GPU this would wait for the device, and one of several processes must not leave alone: both ask later
        if nll_N.device.type == "cpu" and self.args.world_size == 1:
            self.monitor.refuse_nonfinite(self.state.global_step + 1)
        return nll_N

    def _evaluated(self, batch: Batch) -> Tensor:
        """Return the losses of a micro-batch's labelled tokens as training computes them, outside the log; [N]."""
        self.model.train()
        with self.compute_loss_context_manager():
            return self.model(self._prepare_inputs(batch))

    def losses_on(self, batches: Iterable[Batch]) -> Tensor:
        """Return every task's loss on validation micro-batches, NaN where a task is absent; float64 [T]."""
        with self.compute_loss_context_manager():
            loss_T = task_losses(self.model, batches, self.objective.aggregation, len(self.names), self.args.device)
        # every process evaluates the same rows; the mean keeps them at one value to the last bit
        return self.accelerator.reduce(loss_T, reduction="mean") if self.args.world_size > 1 else loss_T

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.clone(), reduction="sum")

    # -- log -----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every task's loss, tokens, examples and share; hand the record to the JSON log and the integrations."""
        if "loss" not in logs:
            return super().log(logs, start_time)
        self.monitor.refuse_nonfinite(self.state.global_step)
        tasks = {name: sums for name, sums in self.monitor.read().items() if sums.tokens}
        record = self._record(logs, tasks)
        if self.is_world_process_zero():
            self.write_log(record)
        flat = {f"loss/{name}": sums.loss for name, sums in tasks.items()}
        flat |= {f"share/{name}": sums.share for name, sums in tasks.items()}
        super().log({**logs, **flat, "tokens_per_second": record["tokens_per_second"]}, start_time)

    def _record(self, logs: dict[str, float], tasks: dict[str, TaskSums]) -> dict[str, Any]:
        now = time.monotonic()
        seconds, self._seconds_at_log = now - self._seconds_at_log, now
        tokens, self._tokens_since_log = int(self._tokens_since_log), torch.zeros((), dtype=torch.int64)
        last = min(self.state.global_step * self._batches_per_step, len(self.batches)) - 1
        return {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tasks": {name: vars(sums) for name, sums in tasks.items()},
            "repeats": self.batches.repeats_at(last),
            "tokens_per_second": tokens * self.args.world_size / seconds,
            "labelled_tokens_per_second": sum(sums.tokens for sums in tasks.values()) / seconds,
            "seconds": seconds,
            **(self.balancing.record(self.names) if self.balancing else {}),
        }

    @property
    def _batches_per_step(self) -> int:
        return self.args.gradient_accumulation_steps * self.args.world_size

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; one that is not finite must not reach the weights.

        On a GPU asking would wait for the device at every step; there ``_save_checkpoint`` asks the weights instead.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.args.device.type == "cpu" and not math.isfinite(float(norm)):
            self.monitor.refuse_nonfinite(self.state.global_step + 1)
            raise diverged("The gradient", self.state.global_step + 1, Path(str(self.args.output_dir)))
        return norm

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.monitor.refuse_nonfinite(self.state.global_step)
        refuse_nonfinite_weights(self.model, self.state.global_step, Path(str(self.args.output_dir)))
        random_states = self._random_states()
        assert self.args.output_dir is not None and self.optimizer is not None
        folder = Path(self.args.output_dir)
        try:
            checkpoints.write_checkpoint(
                folder / f"checkpoint-{self.state.global_step}",
                model=self.model,
                optimizer=self.optimizer,
                schedule=self.lr_scheduler,
                balancer=self.balancing.balancer.state_dict() if self.balancing else {},
                random_states=random_states,
                trainer_state=json.dumps(_plain_state(self.state)),
                fingerprint=self.fingerprint,
                ranks=rank_state(self.model.model),
            )
        except (OSError, SafetensorError) as error:
            raise _cannot_write(error, folder) from error
        if is_main():
            checkpoints.remove_old_checkpoints(folder, self.args.save_total_limit or 2)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Set up as the Trainer does; with DeepSpeed the checkpoint is read here, which is none of DeepSpeed's own."""
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch to the device as it is: token weights stay float32, which DeepSpeed would round."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            self._resumed_from = checkpoint
            checkpoints.load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            load_rank_state(self.model.model, checkpoints.load_ranks(Path(checkpoint)))
            if self.balancing:
                self.balancing.balancer.load_state_dict(checkpoints.load_balancer(Path(checkpoint)))

    def _random_states(self) -> dict[str, Tensor]:
        """Return the generators' states of all processes, uint8 [processes, bytes]; {} on others than the main one."""
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        of_all = gather(states)
        return {name: torch.stack([each[name] for each in of_all]) for name in states} if of_all else {}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = checkpoints.load_random_states(Path(checkpoint))
        rank = self.args.process_index
        if rank >= len(states["cpu"]):  # the run goes on with more processes than it had
            torch.manual_seed(seed_of(self.args.seed, "process", rank, self.state.global_step) % 2**63)
            return
        torch.set_rng_state(states["cpu"][rank].clone())  # a row may lie unaligned, which crashes
        if torch.cuda.is_available() and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"][rank].clone())


def _only_item(items: list[Batch]) -> Batch:
    return items[0]


def _plain_state(state: Any) -> dict[str, Any]:
    """Return the TrainerState's own fields; callbacks of ours keep no state."""
    fields = {name: value for name, value in vars(state).items() if not name.startswith("_")}
    return fields | {"stateful_callbacks": {}}


def refuse_nonfinite_weights(model: torch.nn.Module, step: int, folder: Path) -> None:
    """Raise when a parameter that trains holds NaN or infinity: neither checkpoint nor export may hold it.

    Raises:
        MultituneError: after which step, and where the last good checkpoint lies.
    """
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if p.requires_grad]
    finite = [torch.isfinite(p).all() for p in local]
    if any_of(bool(finite) and not bool(torch.stack(finite).all())):
        raise diverged("A weight", step, folder)


def diverged(what: str, step: int, folder: Path) -> MultituneError:
    """Return the error for a training that has diverged."""
    kept = checkpoints.sorted_checkpoints(folder)
    place = f"Copy the last good checkpoint, {kept[-1]}, if you need it; then l" if kept else "L"
    return MultituneError(
        f"{what} is not a finite number.",
        f"training step {step}",
        f"{place}ower training.learning_rate or training.max_grad_norm and run again: the step then starts anew.",
    )


def _cannot_write(error: OSError | SafetensorError, folder: Path) -> MultituneError:
    # safetensors wraps the operating system's error into its own, with the number in the text
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        free = shutil.disk_usage(folder).free
        return MultituneError(
            "The disk is full; the checkpoint was not written and the one before it is kept.",
            f"{folder} ({free / 2**20:.0f} MiB free)",
            "Free some space or lower training.save_total_limit, then run the same command again.",
        )
    return MultituneError(
        f"The checkpoint could not be written: {error}.", str(folder), "Make the folder writable and run again."
    )
