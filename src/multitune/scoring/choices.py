"""Log-probabilities of choices: every prompt is read once, and all its choices continue from there.

    log p(c | x) = sum_t log p(c_t | x, c_<t)

The last position of the prompt gives the first token of every choice, so choices of one token need nothing more. The
others continue on copies of the prompt's key-value cache (encoder-decoders: the encoder runs once, and the decoder's
start token takes the prompt's place). What many prompts begin with, such as fixed demonstrations, is read once for all.

Shape legend: ``B`` prompts, ``P`` tokens of a prompt, ``K`` choices of a prompt, ``N`` pairs of (prompt, choice), ``L``
tokens of a choice, ``V`` words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from multitune.decoding.generate import start_token
from multitune.decoding.prompt_batches import (
    batches_by_length,
    cached_cost,
    context_length,
    fit_prompts,
    pad,
)
from multitune.decoding.prompt_pass import (
    PromptPass,
    decoder_start,
    read_on,
    read_prompts,
    shared_prefixes,
    shares_prefixes,
    shares_prompts,
    takes,
)
from multitune.errors import MultituneError
from multitune.models.packed import evaluating

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

Choices = Sequence[Sequence[int]]  # token ids of every choice
Progress = Callable[[int, int], None]


def choice_log_probabilities(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Choices],
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Return log p(choice | prompt) in nats for every choice of every prompt, float64 [choices of that prompt] each.

    Equal to reading prompt and choice as one text, up to rounding. Models whose state is not a key-value cache that
    can be copied by rows (state spaces, linear attention) and adapters that learn a prompt do read it so.

    Args:
        prompts: token ids per prompt; one too long for the model's positions is cut on the left, counted and logged.
        choices: for every prompt its choices' token ids; prompts may share one list, which is then laid out once.
        batch_tokens: tokens a batch may take; memory is bounded by it.
        progress: called with (prompts done, prompts in all) after every batch.

    Raises:
        MultituneError: a choice without tokens, a prompt without choices, a choice longer than the model's positions.
    """
    found = _scores(backbone, prompts, choices, batch_tokens, progress, greedy=False)
    return [score_KC[:, 0] for score_KC in found]


def choice_scores(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Choices],
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what `choice_log_probabilities` returns, and which choices greedy decoding would write, bool [K] each."""
    found = _scores(backbone, prompts, choices, batch_tokens, progress, greedy=True)
    return [(score_KC[:, 0], score_KC[:, 1] == 0) for score_KC in found]


def _scores(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Choices],
    batch_tokens: int,
    progress: Progress | None,
    *,
    greedy: bool,
) -> list[np.ndarray]:
    """Return sums over every choice's tokens, float64 [K, C]: log p, and with ``greedy`` the tokens that are not the
    likeliest."""
    tables = _tables(choices)
    fitted = _fit(backbone, prompts, choices, tables)
    score = _shared_prompts if shares_prompts(backbone.model) else _whole_texts
    with evaluating(backbone.model), torch.no_grad():
        return score(backbone, fitted, [tables[id(one)] for one in choices], batch_tokens, progress, greedy)


def whole_text_log_probabilities(
    backbone: Backbone, prompts: Sequence[Sequence[int]], choices: Sequence[Choices], *, batch_tokens: int = 4096
) -> list[np.ndarray]:
    """Return what ``choice_log_probabilities`` returns, reading every prompt again for each of its choices."""
    tables = _tables(choices)
    fitted = _fit(backbone, prompts, choices, tables)
    with evaluating(backbone.model), torch.no_grad():
        found = _whole_texts(backbone, fitted, [tables[id(one)] for one in choices], batch_tokens, None, greedy=False)
    return [score_KC[:, 0] for score_KC in found]


@dataclass(frozen=True)
class _Table:
    """The choices of one or many prompts, laid out: tokens int64 [K, L] filled with zeros, lengths int64 [K]."""

    tokens_KL: np.ndarray
    length_K: np.ndarray


def _tables(choices: Sequence[Choices]) -> dict[int, _Table]:
    """Return one table per distinct list of choices, keyed by the list's identity."""
    tables: dict[int, _Table] = {}
    for i, one in enumerate(choices):
        if id(one) in tables:
            continue
        length_K = np.array([len(choice) for choice in one], dtype=np.int64)
        if not len(one) or not length_K.all():
            raise MultituneError(
                "There are no choices to score." if not len(one) else "A choice has no tokens.",
                f"choices of prompt {i}" + ("" if not len(one) else f", choice {int(np.argmin(length_K))}"),
                "Give every example at least one choice, and every choice a text.",
            )
        tokens_KL = np.zeros((len(one), int(length_K.max())), dtype=np.int64)
        for k, choice in enumerate(one):
            tokens_KL[k, : len(choice)] = choice
        tables[id(one)] = _Table(tokens_KL, length_K)
    return tables


def _fit(
    backbone: Backbone, prompts: Sequence[Sequence[int]], choices: Sequence[Choices], tables: dict[int, _Table]
) -> list[list[int]]:
    """Return the prompts, cut on the left where prompt and longest choice exceed the model's positions."""
    positions = context_length(backbone.model)
    longest = np.array([tables[id(one)].tokens_KL.shape[1] for one in choices], dtype=np.int64)
    if len(longest) and longest.max() >= positions:
        raise MultituneError(
            f"A choice has {longest.max()} tokens, but the model has only {positions} positions.",
            f"choices of prompt {int(np.argmax(longest))}",
            "Shorten the choices, or take a model with more positions.",
        )
    # The last token of a choice is predicted, never read. Encoder and decoder have positions of their own.
    room = np.full(len(longest), positions) if backbone.form == "seq2seq" else positions - longest + 1
    tokenizer = backbone.tokenizer
    return fit_prompts(prompts, room, start_token(tokenizer), tokenizer.bos_token_id)


def _shared_prompts(
    backbone: Backbone,
    prompts: list[list[int]],
    tables: list[_Table],
    batch_tokens: int,
    progress: Progress | None,
    greedy: bool,
) -> list[np.ndarray]:
    scores: list[np.ndarray] = [np.empty(0)] * len(prompts)
    done = 0
    for prefix, members in shared_prefixes(prompts) if shares_prefixes(backbone) else [([], [*range(len(prompts))])]:
        begun = read_prompts(backbone, [prefix]) if prefix else None
        rest = [prompts[i][len(prefix) :] for i in members]
        cost = np.array([len(tokens) for tokens in rest]) + cached_cost(len(prefix))
        for batch in batches_by_length(cost, batch_tokens):
            read = read_prompts(backbone, [rest[place] for place in batch], begun)
            own = [members[place] for place in batch]
            found = _after(backbone, read, [tables[i] for i in own], batch_tokens, greedy)
            for i, score_KC in zip(own, found, strict=True):
                scores[i] = score_KC
            done += len(batch)
            if progress is not None:
                progress(done, len(prompts))
    return scores


def _after(
    backbone: Backbone, read: PromptPass, tables: list[_Table], batch_tokens: int, greedy: bool
) -> list[np.ndarray]:
    """Return the sums of the choices after prompts that have been read, float64 [K, C] each."""
    row_N, tokens_NL, length_N = _pairs(tables)
    # Not log_softmax over [N, V]: with 150 choices a prompt that would be the largest tensor of all.
    logits_BV = read.logits_BV.float()
    rows, first_N = (torch.as_tensor(index, device=logits_BV.device) for index in (row_N, tokens_NL[:, 0]))
    columns = [logits_BV[rows, first_N] - logits_BV.logsumexp(-1)[rows]]
    if greedy:
        columns.append((logits_BV.argmax(-1)[rows] != first_N).float())
    total_NC = torch.stack(columns, -1).double().cpu().numpy()

    longer = np.flatnonzero(length_N > 1)
    cost = length_N[longer] - 1 + cached_cost(read.attention_mask.shape[1])
    for chunk in batches_by_length(cost, batch_tokens):
        pairs = longer[chunk]
        total_NC[pairs] += _rest(backbone, read, row_N[pairs], tokens_NL[pairs], length_N[pairs], greedy)
    return np.split(total_NC, np.cumsum([len(table.length_K) for table in tables])[:-1])


def _pairs(tables: list[_Table]) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Return every (prompt, choice) of a batch: the prompt's row [N], tokens [N, L] and lengths [N]."""
    width = max(table.tokens_KL.shape[1] for table in tables)
    tokens = [np.pad(table.tokens_KL, ((0, 0), (0, width - table.tokens_KL.shape[1]))) for table in tables]
    row_N = np.repeat(np.arange(len(tables)), [len(table.length_K) for table in tables])
    length_N = np.concatenate([table.length_K for table in tables])
    return row_N, torch.from_numpy(np.concatenate(tokens)), length_N


def _rest(
    backbone: Backbone, read: PromptPass, row_N: np.ndarray, tokens_NL: Tensor, length_N: np.ndarray, greedy: bool
) -> np.ndarray:
    """Return the sums over every choice's tokens after the first, float64 [N, C]; all have at least two."""
    device = read.attention_mask.device
    rows = torch.from_numpy(row_N).to(device)
    tokens_NL = tokens_NL[:, : int(length_N.max())].to(device)
    logits_NLV = read_on(backbone, read, rows, tokens_NL[:, :-1])
    counts = torch.arange(1, tokens_NL.shape[1], device=device) < torch.from_numpy(length_N).to(device)[:, None]
    return _sums(logits_NLV, tokens_NL[:, 1:], counts, greedy)


def _whole_texts(
    backbone: Backbone,
    prompts: list[list[int]],
    tables: list[_Table],
    batch_tokens: int,
    progress: Progress | None,
    greedy: bool,
) -> list[np.ndarray]:
    row_N, tokens_NL, length_N = _pairs(tables) if tables else (np.empty(0, int), torch.empty(0, 1), np.empty(0, int))
    prompt_length_N = np.array([len(prompt) for prompt in prompts], dtype=np.int64)[row_N]
    total_NC = np.zeros((len(row_N), 2 if greedy else 1))
    done = 0
    for pairs in batches_by_length(prompt_length_N + length_N, batch_tokens):
        continuations = [tokens_NL[n, : length_N[n]].tolist() for n in pairs]
        total_NC[pairs] = _whole_batch(backbone, [prompts[row] for row in row_N[pairs]], continuations, greedy)
        done += len(pairs)
        if progress is not None:
            progress(done * len(prompts) // len(row_N), len(prompts))
    ends = np.cumsum([len(table.length_K) for table in tables])[:-1]
    return np.split(total_NC, ends) if tables else []


def _whole_batch(
    backbone: Backbone, prompts: list[list[int]], continuations: list[list[int]], greedy: bool
) -> np.ndarray:
    """Return the sums of each continuation, reading it and its prompt in one go, float64 [N, C]."""
    model, filler = backbone.model, backbone.tokenizer.pad_token_id
    device = next(model.parameters()).device
    target_NL, is_target_NL = pad(continuations, filler, "right", device)
    length = target_NL.shape[1]
    if backbone.form == "seq2seq":
        input_ids, mask = pad(prompts, filler, "right", device)
        start = torch.full((len(prompts), 1), decoder_start(model), device=device)
        decoder_input_ids = torch.cat([start, target_NL[:, :-1]], dim=1)
        output = model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=decoder_input_ids, use_cache=False)
        logits_NLV = output.logits[:, -length:]
    else:
        texts = [prompt + continuation[:-1] for prompt, continuation in zip(prompts, continuations, strict=True)]
        input_ids, mask = pad(texts, filler, "right", device)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        first_N = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        kept = input_ids.shape[1] - int(first_N.min())  # columns from the first that predicts a choice
        if takes(model, "logits_to_keep"):
            inputs["logits_to_keep"] = kept
        # Counted from the end, because an adapter that learns a prompt puts columns of its own in front.
        logits = model(**inputs).logits[:, -kept:]
        column_NL = first_N[:, None] - first_N.min() + torch.arange(length, device=device)
        logits_NLV = logits[torch.arange(len(prompts), device=device)[:, None], column_NL.clamp(max=kept - 1)]
    return _sums(logits_NLV, target_NL, is_target_NL.bool(), greedy)


def _sums(logits_NLV: Tensor, tokens_NL: Tensor, counts_NL: Tensor, greedy: bool) -> np.ndarray:
    """Return sums over the tokens that count, float64 [N, C]: log p, and with ``greedy`` those not the likeliest."""
    tokens_NL = tokens_NL.to(logits_NLV.device)
    logits_NLV = logits_NLV.float()
    columns = [logits_NLV.gather(-1, tokens_NL[..., None])[..., 0] - logits_NLV.logsumexp(-1)]
    if greedy:
        columns.append((logits_NLV.argmax(-1) != tokens_NL).float())
    sums_NC = torch.stack([torch.where(counts_NL, column, 0.0).double().sum(1) for column in columns], -1)
    return sums_NC.cpu().numpy()
