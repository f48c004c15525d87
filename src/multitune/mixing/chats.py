"""Chats through the tokenizer's own template: ids, and which of them the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.tasks.task import Prompted

IGNORED = -100
"""Label of a token that carries no loss."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Conversation = list[dict[str, str]]


def ids_of(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of texts exactly as written, with nothing put before or after them."""
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]


def uses_chat_template(prompted: Prompted, chat: str, tokenizer: Any) -> bool:
    """Whether an example goes through the tokenizer's chat template.

    Args:
        prompted: the example.
        chat: always; never; auto: when the example is given as messages and the tokenizer has a template.
        tokenizer: a transformers tokenizer.

    Raises:
        MultituneError: always, and the tokenizer has no template.
    """
    if chat == "always" and not tokenizer.chat_template:
        raise MultituneError(
            "The tokenizer has no chat template.",
            f"chat: always, for {prompted.example.where}",
            "Use an instruction-tuned model, or set chat to auto or never.",
        )
    return chat == "always" or (chat == "auto" and bool(prompted.messages) and bool(tokenizer.chat_template))


def conversation(prompted: Prompted, reply: str | None = None) -> Conversation:
    """The messages of an example, ended by the reply: the given one, or the example's own last turn or target."""
    turns = [{"role": turn.role, "content": turn.content} for turn in prompted.messages]
    if not turns:
        turns = [{"role": "user", "content": prompted.prompt}]
    own = turns.pop()["content"] if turns[-1]["role"] == "assistant" else prompted.target
    return [*turns, {"role": "assistant", "content": own if reply is None else reply}]


def chat_prompts(prompted: Sequence[Prompted], tokenizer: Any) -> list[list[int]]:
    """Ids of the chats up to where the last reply begins."""
    return ids_of([_render_head(example, conversation(example)[:-1], tokenizer) for example in prompted], tokenizer)


def chat_reply(prompted: Prompted, reply: str, tokenizer: Any) -> list[int]:
    """Ids of a reply as they would follow ``chat_prompts``, without what the template puts after it."""
    head = _render_head(prompted, conversation(prompted)[:-1], tokenizer)
    whole = _render(prompted, conversation(prompted, reply), tokenizer)
    place = whole.rfind(reply.strip(), len(head))
    if not whole.startswith(head) or place < 0:
        raise _unclear(prompted, "the reply does not stand after the prompt")
    head_ids, ids = ids_of([head, whole[: place + len(reply.strip())]], tokenizer)
    if ids[: len(head_ids)] != head_ids:
        raise _unclear(prompted, "the reply changes the tokens of the prompt")
    return ids[len(head_ids) :]


def encode_chats(prompted: Sequence[Prompted], tokenizer: Any, eos: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of chats: the assistant's turns carry loss, nothing else; ended by eos after the last.

    Which tokens the assistant wrote is said by the template where it has generation markers, and otherwise found turn
    by turn: the chat up to a turn, with the generation prompt, must begin the chat through that turn, token by token.

    Raises:
        MultituneError: the template refuses a chat, or a turn cannot be told from what is around it.
    """
    chats = [conversation(example) for example in prompted]
    heads = chat_prompts(prompted, tokenizer)
    marked = _GENERATION.search(tokenizer.get_chat_template()) is not None
    find = _marked_tokens if marked else _tokens_by_turn
    encoded = []
    for example, head, (ids, loss) in zip(prompted, heads, find(prompted, chats, tokenizer, eos), strict=True):
        if ids[: len(head)] != head:
            raise _unclear(example, "the chat does not begin with its own prompt")
        ids, loss = _ended_by_eos(ids, loss, len(head), eos, example)
        labels = [token if carries else IGNORED for token, carries in zip(ids, loss, strict=True)]
        labels[:1] = [IGNORED]
        encoded.append((ids, labels))
    return encoded


def _marked_tokens(
    prompted: Sequence[Prompted], chats: Sequence[Conversation], tokenizer: Any, eos: int
) -> list[tuple[list[int], list[bool]]]:
    """Ids and the assistant's tokens by the template's generation markers."""
    try:
        answer = tokenizer.apply_chat_template(list(chats), return_dict=True, return_assistant_tokens_mask=True)
    except (jinja2.TemplateError, ValueError) as error:
        raise _refused(prompted[0], error) from error
    masks = [[bool(carries) for carries in mask] for mask in answer["assistant_masks"]]
    return list(zip(answer["input_ids"], masks, strict=True))


def _tokens_by_turn(
    prompted: Sequence[Prompted], chats: Sequence[Conversation], tokenizer: Any, eos: int
) -> list[tuple[list[int], list[bool]]]:
    """Ids and the assistant's tokens by comparing the chat before, through and after every assistant turn."""
    texts: list[str] = []
    for example, chat in zip(prompted, chats, strict=True):
        for place, turn in enumerate(chat):
            if turn["role"] == "assistant":
                texts.append(_render_head(example, chat[:place], tokenizer))
                texts.append(_render(example, chat[: place + 1], tokenizer))
    pieces = iter(ids_of(texts, tokenizer))
    found = []
    for example, chat in zip(prompted, chats, strict=True):
        turns = [(next(pieces), next(pieces)) for turn in chat if turn["role"] == "assistant"]
        ids = turns[-1][1]
        loss = [False] * len(ids)
        for head, through in turns:
            if through[: len(head)] != head or ids[: len(through)] != through:
                raise _unclear(example, "a turn changes the tokens before it")
            ends = [place + 1 for place in range(len(head), len(through)) if through[place] == eos]
            stop = ends[-1] if ends else len(through)  # a line break after eos is the template's, not the assistant's
            loss[len(head) : stop] = [True] * (stop - len(head))
        found.append((ids, loss))
    return found


def _ended_by_eos(
    ids: list[int], loss: list[bool], reply: int, eos: int, prompted: Prompted
) -> tuple[list[int], list[bool]]:
    """Cut or complete a chat so that its last token is an eos that carries loss.

    Args:
        ids: token ids.
        loss: which of them the assistant wrote.
        reply: where the last reply begins.
        eos: id of the end-of-text token.
        prompted: for the error.
    """
    if not any(loss[reply:]):
        raise _unclear(prompted, "the template marks nothing of the last turn as the assistant's")
    end = len(loss) - loss[::-1].index(True)
    if ids[end - 1] == eos:
        return ids[:end], loss[:end]
    return [*ids[:end], eos], [*loss[:end], True]


def _render_head(prompted: Prompted, chat: Conversation, tokenizer: Any) -> str:
    """The text of a chat up to where the assistant's next turn begins."""
    return _render(prompted, chat, tokenizer, add_generation_prompt=True)


def _render(prompted: Prompted, chat: Conversation, tokenizer: Any, **options: bool) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except (jinja2.TemplateError, ValueError) as error:
        raise _refused(prompted, error) from error


def _refused(prompted: Prompted, error: Exception) -> MultituneError:
    return MultituneError(
        f"The tokenizer's chat template refuses this chat: {str(error).strip()}",
        prompted.example.where,
        "Change the roles or their order, or set chat to never.",
    )


def _unclear(prompted: Prompted, reason: str) -> MultituneError:
    return MultituneError(
        f"The assistant's turns cannot be told apart in the tokenizer's chat template: {reason}.",
        prompted.example.where,
        "Put {% generation %} markers into the chat template, or set chat to never.",
    )
