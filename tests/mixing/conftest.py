"""Tokenizers trained here on a few sentences, and toy tasks whose data name their origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from multitune.mixing.tokens import TokenTable
from multitune.tasks.prompting import resolve
from multitune.tasks.task import Example, Message, Prompted, Task

TEXT = [
    "the cat sat on the mat and the dog ran after the cat",
    "one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9",
    "User: hello there\nAssistant: hello, how are you?\nSystem: be kind",
    "positive negative neutral offensive not offensive good bad",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds nothing of its own, as GPT-2's; options go to its transformers wrapper."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    settings = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False, **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def sentence_piece(template: str, **options: object) -> PreTrainedTokenizerFast:
    """A BPE with "▁" before every text, and the given post-processing, as Llama 2's or T5's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False, **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


@pytest.fixture(scope="session")
def gpt() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    return byte_level(chat_template=CHATML)


@pytest.fixture(scope="session")
def marked() -> PreTrainedTokenizerFast:
    return byte_level(chat_template=MARKED)


@pytest.fixture(scope="session")
def llama() -> PreTrainedTokenizerFast:
    return sentence_piece("<s> $A", bos_token="<s>")


@pytest.fixture(scope="session")
def t5() -> PreTrainedTokenizerFast:
    return sentence_piece("$A </s>")


@pytest.fixture(scope="session")
def bert() -> PreTrainedTokenizerFast:
    return sentence_piece("<s> $A </s>")


@pytest.fixture(scope="session")
def prompted() -> Callable[..., Prompted]:
    """Makes an example as the tasks room hands it over."""

    def make(prompt: str = "", target: str = "", messages: tuple[tuple[str, str], ...] = (), **fields: Any) -> Prompted:
        settings = {"choices": (), "label": None, "value": None, "template": 0, **fields}
        example = Example(id="toy:0", where="toy.jsonl:1", fields={})
        turns = tuple(Message(role, content) for role, content in messages)
        return Prompted(example=example, prompt=prompt, target=target, messages=turns, **settings)

    return make


@pytest.fixture
def toy_task(tmp_path: Path) -> Callable[..., Task]:
    """Makes a resolved task whose training and test rows lie in one JSON-lines file of the temporary folder."""

    def make(name: str, rows: list[dict[str, Any]], **settings: Any) -> Task:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = {"path": f"{name}.jsonl"}
        return resolve(
            Task(**{"name": name, "train": source, "test": source, "kind": "generate", **settings}), tmp_path
        )

    return make


@pytest.fixture
def toy_table(tmp_path: Path) -> Callable[..., TokenTable]:
    """Writes a token table whose ids name their origin: row r of a task is (r + 1) * unit, as often as it is long."""

    def make(task: str, unit: int, lengths: Sequence[int], form: str = "causal", per_batch: int = 7) -> TokenTable:
        ids = [[(row + 1) * unit] * length for row, length in enumerate(lengths)]
        if form == "causal":  # the first token and every second one after it carry no loss
            labels = [[token if place % 2 else -100 for place, token in enumerate(row)] for row in ids]
        elif form == "seq2seq":
            labels = [[50_000 + token for token in row[: 1 + len(row) // 2]] for row in ids]
        else:
            labels = [[] for _ in ids]
        columns = {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "labels": pa.array(labels, pa.list_(pa.int32())),
            "label_count": pa.array([sum(label != -100 for label in row) for row in labels], pa.int32()),
            "value": pa.array([float(row[0]) for row in ids], pa.float64()),
        }
        path = tmp_path / f"{task}-{form}.arrow"
        table = pa.table(columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as arrow:
            arrow.write_table(table, max_chunksize=per_batch)
        facts = {"task": task, "form": form, "truncated": 0, "dropped": 0, "bad_rows": 0, "fingerprint": path.stem}
        path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
        return TokenTable(path)

    return make
