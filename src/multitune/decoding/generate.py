"""Batched generation: prompts in, texts out, in the order of the prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from multitune.decoding.prompt_batches import (
    batches_by_length,
    batches_of_one_length,
    cached_cost,
    context_length,
    fit_prompts,
    pad,
)
from multitune.decoding.prompt_pass import PromptPass, after_prefix, read_prompts, shared_prefixes, shares_prefixes
from multitune.errors import MultituneError
from multitune.models.packed import evaluating, is_prompt_learning, without_adapters

if TYPE_CHECKING:
    from multitune.models.loading import Backbone


class StopStrings(StoppingCriteria):
    """Tells which rows have written one of the stop strings; the prompt itself may contain them.

    Only the newest tokens are decoded: a stop string of b bytes ends within the last b tokens at the step that
    completes it, and every step is looked at. One token more, because decoders strip a space at the start.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._prompt_length = prompt_length
        self._tail = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        new_tokens = input_ids[:, max(self._prompt_length, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        stopped = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(stopped, dtype=torch.bool, device=input_ids.device)


def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    batch_tokens: int = 4096,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the text that the model writes after each prompt, without special tokens and without the stop string.

    Args:
        prompts: token ids per prompt.
        max_new_tokens, stop, batch_tokens, temperature, top_p, seed, progress: as for `generate_several`; greedy, a
            prompt's text does not depend on its batch.

    Raises:
        MultituneError: max_new_tokens leaves no position for the prompt, or a stop string is empty.
    """
    several = generate_several(
        backbone,
        prompts,
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_tokens=batch_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        progress=progress,
    )
    return [texts[0] for texts in several]


def generate_several(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int = 1,
    samples: int = 1,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    batch_tokens: int = 4096,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[str]]:
    """Return what the model writes after each prompt in several ways, as `generate` does: all beams, or samples.

    Prompts go in batches of similar length, padded on the left (encoder-decoders: on the right), with a key-value
    cache; what many of them begin with is read once. A prompt too long for the model's positions is cut on the left,
    counted and logged once.

    Args:
        prompts: token ids per prompt.
        beams: width of a beam search, whose texts come in the order of their mean log-probability; 1 is greedy.
        samples: texts per prompt where the temperature is above 0, in the order in which they were drawn.
        max_new_tokens: at most so many tokens are written; at least 1.
        stop: a text ends before the first of these strings.
        batch_tokens: rows times ways times (longest prompt + max_new_tokens) of a batch; memory is bounded by it.
        temperature: logits are divided by it; 0 does not sample.
        top_p: samples from the smallest set of tokens whose probability reaches it, in (0, 1]; 1 samples from all.
        seed: of the sampling; the caller's random state is left as it was.
        progress: called with (prompts done, prompts in all) after every batch.

    Raises:
        MultituneError: max_new_tokens leaves no position for the prompt, or a stop string is empty.
        ValueError: several beams of a sampling, or several samples without a temperature.
    """
    if (beams > 1 and temperature > 0) or (samples > 1 and temperature <= 0):
        raise ValueError(f"{beams} beams and {samples} samples do not go with the temperature {temperature}")
    model = backbone.model
    stop = _stop_strings(stop)
    fitted = _fit(backbone, prompts, max_new_tokens)
    ways = max(beams, samples)
    config = _generation_config(model, backbone.tokenizer, max_new_tokens, temperature, top_p, beams, ways)

    texts: list[list[str]] = [[] for _ in fitted]
    # With an adapter that learns a prompt, peft drops position ids: padding in front would move the text's positions.
    batched = batches_of_one_length if is_prompt_learning(model) else batches_by_length
    done = number = 0
    with evaluating(model), torch.no_grad():
        # transformers does not repeat a cache that it is given for several ways
        shares = ways == 1 and shares_prefixes(backbone)
        for prefix, members in shared_prefixes(fitted) if shares else [([], [*range(len(fitted))])]:
            begun = read_prompts(backbone, [prefix]) if prefix else None
            tokens = [len(fitted[i]) - len(prefix) + max_new_tokens + cached_cost(len(prefix)) for i in members]
            for places in batched(np.array(tokens, dtype=np.int64), max(1, batch_tokens // ways)):
                batch = [members[place] for place in places]
                with _seeded(seed + number, next(model.parameters()).device, temperature):
                    rest = [fitted[i][len(prefix) :] for i in batch]
                    written = _write(backbone, rest, config, stop, begun, prefix)
                for place, i in enumerate(batch):
                    texts[i] = [cut_at_stop(text, stop) for text in written[place * ways : (place + 1) * ways]]
                number += 1
                done += len(batch)
                if progress is not None:
                    progress(done, len(fitted))
    return texts


def _write(
    backbone: Backbone,
    prompts: list[list[int]],
    config: GenerationConfig,
    stop: Sequence[str],
    begun: PromptPass | None,
    prefix: list[int],
) -> list[str]:
    """Return what the model writes after one batch of prompts, of which the prefix has been read already.

    Where it writes in several ways, those of the first prompt come first.
    """
    model, tokenizer = backbone.model, backbone.tokenizer
    side = "right" if backbone.form == "seq2seq" else "left"
    input_ids, attention_mask = pad(prompts, tokenizer.pad_token_id, side, next(model.parameters()).device)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if begun is not None:
        inputs = after_prefix(begun, prefix, input_ids, attention_mask)
    # An encoder-decoder's output begins with the decoder's start token, a causal model's with the prompt.
    skipped = 1 if backbone.form == "seq2seq" else inputs["input_ids"].shape[1]
    criteria = StoppingCriteriaList([StopStrings(tokenizer, stop, skipped)] if stop else [])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported for parameter efficient tuning")
        output = model.generate(generation_config=config, stopping_criteria=criteria, **inputs)
    return tokenizer.batch_decode(output[:, skipped:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the stop string that comes first in it."""
    found = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(found)] if found else text


def start_token(tokenizer: Any) -> int:
    """Return the token that stands for an empty prompt: beginning of sequence, else the padding token."""
    return int(tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    if any(not text for text in stop):
        raise MultituneError(
            "A stop string is empty, which would end every text before its first letter.",
            f"stop: {list(stop)}",
            "Remove the empty string from the task's stop list.",
        )
    return tuple(stop)


def _fit(backbone: Backbone, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    positions = context_length(backbone.model)
    # Encoder and decoder have positions of their own; a causal model's prompt and answer share them.
    room = positions if backbone.form == "seq2seq" else positions - max_new_tokens
    if room < 1 or max_new_tokens >= positions:
        raise MultituneError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's {positions} positions.",
            "max_new_tokens",
            f"Set max_new_tokens of the task well below {positions}.",
        )
    tokenizer = backbone.tokenizer
    return fit_prompts(prompts, np.full(len(prompts), room), start_token(tokenizer), tokenizer.bos_token_id)


def _generation_config(
    model: nn.Module, tokenizer: Any, max_new_tokens: int, temperature: float, top_p: float, beams: int, ways: int
) -> GenerationConfig:
    """Return settings in which nothing is left to the model's own generation_config.json but its special tokens.

    transformers fills every setting that is left out from that file: beams, minimum lengths and repetition penalties of
    a hub model would otherwise make "greedy" mean something else for every model.
    """
    own = without_adapters(model).generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    eos = sorted({int(token) for token in [*ends, tokenizer.eos_token_id] if token is not None})
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_length=0,
        num_beams=beams,
        num_return_sequences=ways,
        length_penalty=1.0,
        early_stopping=False,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        top_p=top_p if temperature > 0 else 1.0,
        top_k=0 if temperature > 0 else 50,  # 50 is transformers' own default: it warns of another one when greedy
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _seeded(seed: int, device: torch.device, temperature: float) -> Iterator[None]:
    """Seed the sampling of one batch, and give the caller's random state back; ``generate`` takes no generator."""
    if temperature <= 0:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
