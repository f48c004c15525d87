"""Train `tiny` from nothing: `python -m multitune.models.tiny.pretrain --steps 6000 --seed 0 --out DIR [--resume]`.

Tokenizer, random weights, packed documents of the synthetic skills, a warm-up / constant / decay schedule over the
steps, checkpoints that a killed run goes on from, and at the end the finished folder with its model card.

Two processes of one thread each average their gradients: on two busy cores that is several times faster than one
process of two threads, whose every parallel loop waits for the thread that lost its core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.models.tiny.batches import Batch, build_batch
from multitune.models.tiny.card import write_card
from multitune.models.tiny.evaluate import score_episodes, score_skills
from multitune.models.tiny.tokenizer import train_tokenizer
from multitune.tasks.synthetic import SKILLS


@dataclass(frozen=True, slots=True)
class Stage:
    """What batches are made of while the share of the steps taken is below `until`."""

    until: float
    rows: int  # per process
    row_length: int
    max_shots: int
    episodes: float  # share of few-shot documents whose rule only the demonstrations tell
    skills: tuple[str, ...]


# Nothing can be learned in context before attention looks back; copying in short rows teaches that in minutes.
LOOKING_BACK = ("copy_words", "copy_letters", "pick_item", "item_after", "look_up", "look_up_key", "reverse_words")
ALL = tuple(SKILLS) + LOOKING_BACK  # these count twice: much of what is learned in context rests on them
STAGES = (
    Stage(0.08, 16, 128, 5, 0.3, LOOKING_BACK),
    Stage(0.2, 16, 128, 5, 0.4, ALL),
    Stage(0.8, 8, 256, 8, 0.35, ALL),
    Stage(1.01, 4, 512, 16, 0.35, ALL),
)
PROCESSES = 2
LEARNING_RATE, MATRIX_LEARNING_RATE = 2.5e-3, 4e-3
WARM_UP, DECAY_FROM = 0.01, 0.4  # shares of the steps
CHECKPOINT_SECONDS = 300.0
EVALUATIONS = 6


def schedule(progress: float) -> float:
    """The learning rate's factor at a share of the steps: linear up, constant, linear down to 0.02."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    if progress < DECAY_FROM:
        return 1.0
    return max(0.02, (1.0 - progress) / (1.0 - DECAY_FROM))


def stage_at(progress: float) -> Stage:
    """The stage of the curriculum at a share of the steps."""
    return next(stage for stage in STAGES if progress < stage.until or stage is STAGES[-1])


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The architecture of `tiny` with random float32 weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean of the tokens' negative log-likelihoods; products in bfloat16, the sum in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.mask, use_cache=False
        ).logits
    nll = cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (nll * weights).sum() / weights.sum()


def inner_matrices(model: LlamaForCausalLM, rank: int) -> list[torch.nn.Parameter]:
    """The matrices inside the layers whose updates a process computes; each belongs to one process."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    return matrices[rank::PROCESSES]


def new_optimizers(model: LlamaForCausalLM, rank: int) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings and norms, and Muon for this process's part of the matrices.

    Muon (Jordan et al., 2024, scaled as in Liu et al., arXiv:2502.16982) needs about half the steps of AdamW here.
    """
    embeddings_and_norms = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.AdamW(embeddings_and_norms, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05),
        torch.optim.Muon(
            inner_matrices(model, rank),
            lr=MATRIX_LEARNING_RATE,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
            ns_steps=4,
        ),
    ]


@torch.no_grad()
def share_matrices(model: LlamaForCausalLM) -> None:
    """Give every process the matrices that each has updated."""
    for rank in range(PROCESSES):
        matrices = inner_matrices(model, rank)
        flat = torch.cat([matrix.flatten() for matrix in matrices])
        torch.distributed.broadcast(flat, src=rank)
        for matrix, values in zip(matrices, flat.split([matrix.numel() for matrix in matrices]), strict=True):
            matrix.copy_(values.view_as(matrix))


@dataclass(slots=True)
class State:
    """Where a run stands."""

    seed: int
    steps: int  # of the whole run
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def progress(self) -> float:
        """Share of the steps taken."""
        return self.step / self.steps


def save_checkpoint(
    folder: Path, rank: int, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], state: State
) -> None:
    """Write weights, each process's optimizer tensors and the counters to a new folder, then make it current."""
    target = folder / f"step-{state.step}"
    target.mkdir(parents=True, exist_ok=True)
    slots = {
        f"{index}.{position}.{slot}": tensor
        for index, optimizer in enumerate(optimizers)
        for position, tensors in optimizer.state_dict()["state"].items()
        for slot, tensor in tensors.items()
    }
    save_file(slots, target / f"optimizers-{rank}.safetensors")
    torch.distributed.barrier()
    if rank > 0:
        return
    save_file({name: p.detach() for name, p in model.named_parameters()}, target / "weights.safetensors")
    current = folder / "state.json"
    previous = json.loads(current.read_text())["folder"] if current.exists() else target.name
    temporary = folder / "state.json.tmp"
    temporary.write_text(json.dumps({**asdict(state), "folder": target.name}))
    os.replace(temporary, current)
    if previous != target.name:
        shutil.rmtree(folder / previous)


def load_checkpoint(folder: Path, rank: int, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> State:
    """Restore what `save_checkpoint` wrote."""
    saved = json.loads((folder / "state.json").read_text())
    current = folder / saved.pop("folder")
    model.load_state_dict(load_file(current / "weights.safetensors"), strict=False)  # the tied head is not stored
    contents = [optimizer.state_dict() for optimizer in optimizers]
    for key, tensor in load_file(current / f"optimizers-{rank}.safetensors").items():
        index, position, slot = key.split(".")
        contents[int(index)]["state"].setdefault(int(position), {})[slot] = tensor
    for optimizer, content in zip(optimizers, contents, strict=True):
        optimizer.load_state_dict(content)
    return State(**saved)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 with its tokenizer, as `from_pretrained` reads it."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    copy.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    # transformers 5 names a class that older ones lack, and notes how this copy happened to be opened.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "backend")}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_or_train_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer in the folder, trained first where there is none."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(seed).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def log_evaluation(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: int = 16) -> None:
    """Print accuracies on the pretraining skills, without and with demonstrations, and on new episodes."""
    zero = score_skills(model, tokenizer, SKILLS, 0, rows, seed=1)
    few = score_skills(model, tokenizer, SKILLS, 3, rows, seed=1)
    episodes = score_episodes(model, tokenizer, rows, seed=1)
    print("  0-shot", " ".join(f"{name}={score.accuracy:.2f}" for name, score in zero.items()))
    print("  3-shot", " ".join(f"{name}={score.accuracy:.2f}" for name, score in few.items()))
    print("  episodes", " ".join(f"{name}={score.accuracy:.2f}" for name, score in episodes.items()))
    means = [sum(s.accuracy for s in scores.values()) / len(scores) for scores in (zero, few, episodes)]
    print("  mean 0-shot {:.3f}, 3-shot {:.3f}, episodes {:.3f}".format(*means), flush=True)


def pretrain(rank: int, steps: int, seed: int, out: Path, resume: bool) -> None:
    """One of `PROCESSES` processes that take `steps` optimizer steps, all sessions of a resumed run together."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(out / "store"), PROCESSES)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES, store=store)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    model = new_model(tokenizer, seed)
    optimizers = new_optimizers(model, rank)
    state = State(seed=seed, steps=steps)
    if resume and (out / "checkpoints" / "state.json").exists():
        state = load_checkpoint(out / "checkpoints", rank, model, optimizers)
    if rank == 0:
        print(f"{model.num_parameters()} parameters, from step {state.step}", flush=True)
    train(rank, model, tokenizer, optimizers, state, out)
    save_checkpoint(out / "checkpoints", rank, model, optimizers, state)
    if rank == 0:
        export(model, tokenizer, out / "weights")
    torch.distributed.destroy_process_group()


def average(model: LlamaForCausalLM, facts: torch.Tensor) -> torch.Tensor:
    """Replace the gradients by their mean over the processes; returns the mean of `facts` (loss, tokens, seconds)."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), facts])
    torch.distributed.all_reduce(flat)
    flat /= PROCESSES
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return flat[start:]


def train(
    rank: int,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[torch.optim.Optimizer],
    state: State,
    out: Path,
) -> None:
    """Run the optimizer steps; a batch depends on the seed, step, process and stage alone."""

    def batch_at(step: int) -> Batch:
        stage = stage_at(step / state.steps)
        rng = Random(f"pretrain/{state.seed}/{step}/{rank}")
        return build_batch(tokenizer, rng, stage.rows, stage.row_length, stage.max_shots, stage.episodes, stage.skills)

    loss_of = torch.compile(batch_loss, dynamic=False)
    saved = logged = state.seconds
    losses: list[float] = []
    tokens_at_log = state.tokens
    clock = time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(batch_at, state.step)
        while state.step < state.steps:
            batch = upcoming.result()
            upcoming = ahead.submit(batch_at, state.step + 1)
            for optimizer, rate in zip(optimizers, (LEARNING_RATE, MATRIX_LEARNING_RATE), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(state.progress)
            loss = loss_of(model, batch)
            loss.backward()
            now = time.monotonic()
            tokens = float((batch.weights > 0).sum())
            # The processes must agree on the time used: it decides when a checkpoint is due.
            facts = average(model, torch.tensor([loss.item(), tokens, now - clock]))
            clock = now
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            share_matrices(model)
            losses.append(float(facts[0]))
            state.step += 1
            state.tokens += round(float(facts[1]) * PROCESSES)
            state.seconds += float(facts[2])
            if rank == 0 and len(losses) == 50:
                speed = (state.tokens - tokens_at_log) / (state.seconds - logged)
                mean = sum(losses) / len(losses)
                print(
                    f"step {state.step} progress {state.progress:.3f} loss {mean:.4f} tokens/s {speed:.0f}", flush=True
                )
                losses, tokens_at_log, logged = [], state.tokens, state.seconds
            if state.seconds - saved > CHECKPOINT_SECONDS:
                saved = state.seconds
                save_checkpoint(out / "checkpoints", rank, model, optimizers, state)
                if rank == 0:
                    export(model, tokenizer, out / "interim")
            if rank == 0 and state.step % (state.steps // EVALUATIONS + 1) == 0:
                log_evaluation(model, tokenizer)


def finish(out: Path) -> None:
    """Evaluate the exported weights and write the model card beside them."""
    model = LlamaForCausalLM.from_pretrained(out / "weights", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "weights")
    facts = json.loads((out / "checkpoints" / "state.json").read_text())
    write_card(out / "weights", model, tokenizer, facts, rows=200)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded base `tiny` from nothing.")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of the whole training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished weights")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    arguments = parser.parse_args()
    out: Path = arguments.out
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    (out / "store").unlink(missing_ok=True)
    load_or_train_tokenizer(out / "tokenizer", arguments.seed)
    settings = (arguments.steps, arguments.seed, out, arguments.resume)
    torch.multiprocessing.spawn(pretrain, settings, nprocs=PROCESSES)
    finish(out)


if __name__ == "__main__":
    main()
