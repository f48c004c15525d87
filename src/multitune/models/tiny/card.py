"""The model card of `tiny`: what it is, how it was made, and what it can do, measured on test rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.models.tiny.evaluate import EPISODE_SHOTS, SHOTS, SkillScore, score_episodes, score_skills
from multitune.tasks.synthetic import HELD_OUT_SKILLS, SKILLS

FRONT_MATTER = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [multitune, synthetic, tiny]
---
"""

LIMITS = """## Limits

- It knows a few hundred English words and the tasks above, nothing of the world. Text of any language can be encoded
  (the tokenizer works on bytes), but costs many tokens, and the model has not learned from any.
- Words that its training did not contain are many tokens to it: even copying them fails before it is adapted.
- All text but the instructions is lower case, from templates. It is no basis for judging people, its answers no advice.
- It is made to be adapted: to try recipes, to run tests and to learn with, in seconds and on two CPU cores.
- Documents of pretraining have at most 512 tokens; positions up to 1024 are accepted, those above 512 are untried.
"""


def _mean(scores: Mapping[str, SkillScore]) -> float:
    return sum(score.accuracy for score in scores.values()) / len(scores)


def _table(zero: Mapping[str, SkillScore], few: Mapping[str, SkillScore]) -> str:
    lines = [
        f"| skill | 0-shot accuracy | 0-shot loss | {SHOTS}-shot accuracy | {SHOTS}-shot loss |",
        "|---|---|---|---|---|",
    ]
    for name in zero:
        a, b = zero[name], few[name]
        lines.append(f"| {name} | {a.accuracy:.3f} | {a.loss:.3f} | {b.accuracy:.3f} | {b.loss:.3f} |")
    lines.append(f"| **mean** | **{_mean(zero):.3f}** | | **{_mean(few):.3f}** | |")
    return "\n".join(lines)


def _making(model: LlamaForCausalLM, facts: Mapping[str, float]) -> str:
    config = model.config
    heads = f"{config.num_attention_heads} heads of {config.hidden_size // config.num_attention_heads}"
    return f"""## What it is

Llama architecture, {model.num_parameters():,} parameters in bfloat16: {config.num_hidden_layers} layers of width
{config.hidden_size}, {heads}, feed-forward width {config.intermediate_size}, tied embeddings, byte-level BPE of
{config.vocab_size} tokens in which every digit is a token of its own. Chat template with the roles system, user and
assistant. `<|endoftext|>` ends an answer; no token is added in front of a text.

## How it was made

All training text is written by `multitune.tasks.synthetic`: half of the documents few-shot (a third of them under a
rule that only the demonstrations tell), 35 % one instruction and its answer, 15 % conversations. No text of others was
used. Inputs of the test split, one in ten by digest, were never trained on, nor was any of the held-out skills.

    python -m multitune.models.tiny.pretrain --steps {facts["steps"]} --seed {facts["seed"]} --out DIR

{facts["seconds"] / 60:.1f} minutes on two cores of one CPU that other work shared, {facts["step"]:,} steps,
{facts["tokens"] / 1e6:.1f} million tokens. Batches and schedule depend on the seed and the step alone, so
that a training that was stopped goes on with `--resume` as if it had not been; another CPU rounds bfloat16 products in
another order and ends with slightly other weights.
"""


def write_card(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Mapping[str, float], rows: int
) -> None:
    """Measure the model on `rows` test rows per skill and write `README.md` into its folder.

    Args:
        folder: where the weights are.
        model: the exported model, in float32.
        tokenizer: its tokenizer.
        facts: the run's `seed`, `steps` (asked for), `seconds` (used), `step` and `tokens`.
        rows: questions per skill.
    """
    names = {"pretrained": SKILLS, "held out": HELD_OUT_SKILLS}
    zero = {kind: score_skills(model, tokenizer, skills, 0, rows, seed=0) for kind, skills in names.items()}
    few = {kind: score_skills(model, tokenizer, skills, SHOTS, rows, seed=0) for kind, skills in names.items()}
    episodes = score_episodes(model, tokenizer, rows, seed=0)
    secret = "\n".join(f"| {name} | {score.accuracy:.3f} | {score.loss:.3f} |" for name, score in episodes.items())
    text = f"""{FRONT_MATTER}
# tiny: the embedded base of multitune

{_making(model, facts)}
## What it can do

Accuracy is the share of answers that greedy decoding writes exactly before it ends the document or the line; loss is in
nats per token of the answer. {rows} test rows per skill, the weights as shipped, in float32. The loss takes the end
token alone for the end, so it is larger after demonstrations, where a new line is as likely.

### Skills of pretraining

{_table(zero["pretrained"], few["pretrained"])}

### Skills it never saw

For these it must be adapted: neither the instruction nor demonstrations suffice.

{_table(zero["held out"], few["held out"])}

### Rules that only the demonstrations tell

The last of {EPISODE_SHOTS} rows.

| rule | accuracy | loss |
|---|---|---|
{secret}

{LIMITS}"""
    temporary = folder / "README.md.tmp"
    temporary.write_text(text)
    os.replace(temporary, folder / "README.md")
