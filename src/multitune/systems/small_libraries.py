"""Small libraries of functions that one-line instructions ask for, and a decoder of words that writes the calls.

The old library calls "name ( variable , number )". New libraries know the same verbs by other names and call
"variable . name ( number )".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

from multitune.tasks.task import Source, Task

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

VERBS = (
    "sort", "join", "count", "split", "merge", "filter", "shift", "scale", "clip", "round", "sample", "group",
)  # fmt: skip
NAMES = tuple(f"f_{verb}" for verb in VERBS)
VARIABLES = tuple("abcdefghijklmnopqrstuvwxyz")
NUMBERS = tuple(str(number) for number in range(27))
LIBRARIES = ("old", "north", "south")
"""The new ones are asked for by their name wherever both are known."""

PROMPT = "### Instruction:\n{{ instruction }}\n### Response:\n```python\n"
TARGET = "{{ code }}\n```"
SIGNS = ("<pad>", "<eos>", "###", "Instruction:", "Response:", "```python", "```", "(", ")", ",", ".")
VOCABULARY = (*SIGNS, *VERBS, *NAMES, *VARIABLES, *NUMBERS, *LIBRARIES[1:])

ROWS: dict[str, tuple[int, int]] = {"train": (0, 200), "validation": (200, 100), "test": (300, 300)}
"""First row and number of rows of every split, in an order of the seed."""


def rows(library: str, seed: int, first: int, count: int, named: bool) -> Iterator[dict[str, str]]:
    """Yield instructions with their calls; those of one library and seed never occur twice.

    Args:
        library: one of LIBRARIES.
        seed: of the order of the rows, and of which verb has which name in a new library.
        first, count: which rows of that order.
        named: whether the instruction begins with the library's name.
    """
    order = list(product(range(len(VERBS)), VARIABLES, NUMBERS))
    Random(f"rows/{library}/{seed}").shuffle(order)
    names = list(NAMES)
    if library != "old":
        Random(f"names/{library}/{seed}").shuffle(names)
    for verb, variable, number in order[first : first + count]:
        name = names[verb]
        code = f"{name} ( {variable} , {number} )" if library == "old" else f"{variable} . {name} ( {number} )"
        yield {"instruction": f"{library} " * named + f"{VERBS[verb]} {variable} {number}", "code": code}


def library_task(
    library: str, seed: int, *, named: bool = False, splits: Mapping[str, tuple[int, int]] | None = None
) -> Task:
    """Return a library as a task that is asked in the study's format; its answer ends with the fence.

    Args:
        library, seed, named: as for `rows`.
        splits: first row and number of rows of every split; default: ROWS.
    """

    def source(first: int, count: int) -> Source:
        arguments = {"library": library, "seed": seed, "first": first, "count": count, "named": named}
        return Source(generator=f"{__name__}:rows", arguments=arguments)

    sources: dict[str, Any] = {split: source(*span) for split, span in (splits or ROWS).items()}
    return Task(
        name=library, kind="generate", prompt=PROMPT, target=TARGET, stop="```", max_new_tokens=10, **sources
    )  # fmt: skip


def small_decoder(seed: int) -> Backbone:
    """Return a Llama of two layers, 64 wide, 93,760 numbers, with random weights of the seed; a token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
    return Backbone(model, tokenizer, "causal", ModelConfig(name=f"decoder-from-seed-{seed}"), ())
