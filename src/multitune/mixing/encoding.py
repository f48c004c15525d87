"""From a prompted example to token ids: the same ids in training, in choice scoring and in generation.

Prompt and target are tokenised apart, so that ``encode_prompt`` is exactly the beginning of ``encode`` and no token
straddles the two. Between a plain prompt and its target stands one space, unless the prompt ends in white space, the
target begins with it, or one of them is empty. Tokenizers that mark the beginning of a text with a space of their own
(SentencePiece style) have put it there already.

Beginning and end: a plain prompt begins with what the tokenizer itself puts before a text (bos or nothing), a target
ends with eos. A chat is rendered by the tokenizer's own chat template and nothing is put before it; its last assistant
turn ends with eos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from multitune.errors import MultituneError
from multitune.mixing.chats import IGNORED, chat_prompts, chat_reply, encode_chats, ids_of, uses_chat_template

if TYPE_CHECKING:
    from multitune.tasks.task import Form, Prompted, Task

Chat = Literal["auto", "always", "never"]
Encoded = tuple[list[int], list[int]]


def encode(prompted: Prompted, tokenizer: Any, form: Form, chat: Chat) -> Encoded:
    """Token ids and labels of one example, of any length.

    Args:
        prompted: the example through its template.
        tokenizer: a transformers tokenizer.
        form: causal: ids of prompt, target and eos; labels equal the ids where loss is carried and are -100 on the
            prompt and on the first token. seq2seq: ids of the prompt, labels of the target, each ended by eos.
            encoder: ids of the prompt, no labels.
        chat: whether the tokenizer's chat template is used; auto: for examples given as messages, where there is one.

    Raises:
        MultituneError: no eos token, no chat template where one is asked for, a chat that the template cannot render
            or whose turns cannot be told apart.
    """
    return encode_all([prompted], tokenizer, form, chat)[0]


def encode_all(prompted: Sequence[Prompted], tokenizer: Any, form: Form, chat: Chat) -> list[Encoded]:
    """``encode`` of many examples, tokenised together."""
    encoded: list[Encoded] = []
    for as_chat, run in groupby(prompted, lambda example: uses_chat_template(example, chat, tokenizer)):
        examples = list(run)
        if form != "causal":
            prompts = _encode_sources(examples, tokenizer, form, as_chat)
            targets = _encode_decoder_targets(examples, tokenizer) if form == "seq2seq" else [[] for _ in examples]
            encoded += zip(prompts, targets, strict=True)
        elif as_chat:
            encoded += encode_chats(examples, tokenizer, end_of_text(tokenizer))
        else:
            encoded += _encode_plain(examples, tokenizer)
    return encoded


def encode_prompt(prompted: Prompted, tokenizer: Any, form: Form, task: Task) -> list[int]:
    """Token ids that stand before the target: the beginning of ``encode``; of any length."""
    return encode_prompts([prompted], tokenizer, form, task)[0]


def encode_prompts(prompted: Sequence[Prompted], tokenizer: Any, form: Form, task: Task) -> list[list[int]]:
    """``encode_prompt`` of many examples, tokenised together."""
    prompts: list[list[int]] = []
    for as_chat, run in groupby(prompted, lambda example: uses_chat_template(example, task.chat, tokenizer)):
        examples = list(run)
        if form != "causal":
            prompts += _encode_sources(examples, tokenizer, form, as_chat)
        elif as_chat:
            prompts += chat_prompts(examples, tokenizer)
        else:
            before, _ = text_affixes(tokenizer)
            segments = [plain_segments(example)[:-1] for example in examples]
            for ids_of_segments in _encode_segments(segments, tokenizer):
                prompts.append([*before, *(token for ids in ids_of_segments for token in ids)])
    return prompts


def encode_choice(prompted: Prompted, choice: str, tokenizer: Any, form: Form, task: Task) -> list[int]:
    """Token ids of a possible target as they would follow ``encode_prompt``, without eos or anything after the text.

    For plain prompts, ``encode`` is ``encode_prompt`` + ``encode_choice`` of the target + eos. For seq2seq these are
    the decoder's tokens.
    """
    if form == "causal" and uses_chat_template(prompted, task.chat, tokenizer):
        return chat_reply(prompted, choice, tokenizer)
    if form == "seq2seq":
        before, _ = text_affixes(tokenizer, "text_target")
        return before + ids_of([choice], tokenizer)[0]
    context = plain_segments(prompted)[-2][0]
    return ids_of([_join_for(tokenizer)(context, choice)], tokenizer)[0]


def text_affixes(tokenizer: Any, side: Literal["text", "text_target"] = "text") -> tuple[list[int], list[int]]:
    """Ids that the tokenizer itself puts before and after a text; most decoders' put bos before it, or nothing."""
    (bare,) = ids_of(["a"], tokenizer)
    full = list(tokenizer(**{side: "a"})["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def prompt_affixes(tokenizer: Any, form: Form) -> tuple[list[int], list[int]]:
    """Ids before and after a plain prompt: the tokenizer's own; for an encoder-decoder, eos at least."""
    before, after = text_affixes(tokenizer)
    if form == "causal":
        return before, []
    if form == "seq2seq" and not after:
        return before, [end_of_text(tokenizer)]
    return before, after


def end_of_text(tokenizer: Any) -> int:
    """The id of eos.

    Raises:
        MultituneError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise MultituneError(
            "The tokenizer has no end-of-text token, so a model trained with it would never stop.",
            f"tokenizer of {tokenizer.name_or_path or 'the model'}",
            "Set eos_token in its tokenizer_config.json.",
        )
    return int(tokenizer.eos_token_id)


def plain_segments(prompted: Prompted) -> list[tuple[str, bool]]:
    """The text of an example without a chat template, cut where loss begins and ends.

    Messages become lines "User: ...", "Assistant: ..."; every assistant turn carries loss, without its name.

    Returns:
        (text, carries loss), in turn not and carrying; an even number of segments, the last being the target.
    """
    if not prompted.messages:
        return [(prompted.prompt, False), (prompted.target, True)]
    turns = list(prompted.messages)
    if turns[-1].role == "assistant":
        replies, last = turns[:-1], turns[-1].content
    else:
        replies, last = turns, prompted.target
    segments: list[tuple[str, bool]] = []
    context = ""
    for turn in replies:
        context += f"{turn.role.capitalize()}:"
        if turn.role == "assistant":
            segments += [(context, False), (turn.content, True)]
            context = "\n"
        else:
            context += f" {turn.content}\n"
    return [*segments, (context + "Assistant:", False), (last, True)]


def plain_prompt(prompted: Prompted) -> str:
    """The whole text before the target, without a chat template."""
    text = ""
    for segment, _ in plain_segments(prompted)[:-1]:
        text += _with_space(text, segment)
    return text


def plain_text(prompted: Prompted) -> str:
    """The whole text with the target, without a chat template."""
    prompt = plain_prompt(prompted)
    return prompt + _with_space(prompt, plain_segments(prompted)[-1][0])


def _encode_plain(prompted: Sequence[Prompted], tokenizer: Any) -> list[Encoded]:
    before, _ = text_affixes(tokenizer)
    eos = end_of_text(tokenizer)
    segments = [plain_segments(example) for example in prompted]
    encoded = []
    for texts, pieces in zip(segments, _encode_segments(segments, tokenizer), strict=True):
        ids, labels = list(before), [IGNORED] * len(before)
        for (_, carries_loss), piece in zip(texts, pieces, strict=True):
            ids += piece
            labels += piece if carries_loss else [IGNORED] * len(piece)
        ids.append(eos)
        labels.append(eos)
        labels[0] = IGNORED  # nothing predicts the first token of an example
        encoded.append((ids, labels))
    return encoded


def _encode_segments(segments: Sequence[Sequence[tuple[str, bool]]], tokenizer: Any) -> list[list[list[int]]]:
    """Ids of every segment of every example; a carrying segment is joined to what stands before it."""
    join = _join_for(tokenizer)
    texts = []
    for example in segments:
        for place, (text, carries_loss) in enumerate(example):
            texts.append(join(example[place - 1][0], text) if carries_loss else text)
    ids = iter(ids_of(texts, tokenizer))
    return [[next(ids) for _ in example] for example in segments]


def _join_for(tokenizer: Any) -> Callable[[str, str], str]:
    """The rule that gives the text to tokenise for what follows a context.

    A tokenizer that puts a space of its own before every text, as SentencePiece's "▁", needs no other.
    """
    marks_beginnings = tokenizer.tokenize("a")[0].startswith("▁")
    return (lambda context, text: text) if marks_beginnings else _with_space


def _with_space(context: str, text: str) -> str:
    apart = not context or not text or context[-1].isspace() or text[0].isspace()
    return text if apart else f" {text}"


def _encode_sources(prompted: Sequence[Prompted], tokenizer: Any, form: Form, as_chat: bool) -> list[list[int]]:
    """Ids of the prompts for the reading side of an encoder or an encoder-decoder."""
    if as_chat:
        return chat_prompts(prompted, tokenizer)
    before, after = prompt_affixes(tokenizer, form)
    return [[*before, *ids, *after] for ids in ids_of([plain_prompt(example) for example in prompted], tokenizer)]


def _encode_decoder_targets(prompted: Sequence[Prompted], tokenizer: Any) -> list[list[int]]:
    before, _ = text_affixes(tokenizer, "text_target")
    eos = end_of_text(tokenizer)
    texts = [plain_segments(example)[-1][0] for example in prompted]
    return [[*before, *ids, eos] for ids in ids_of(texts, tokenizer)]
