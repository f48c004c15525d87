"""Token tables: what they hold, when they are made anew, what is cut, dropped, skipped and refused."""

from __future__ import annotations

import copy
import json
import multiprocessing

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.mixing import tokens
from multitune.mixing.encoding import encode, encode_prompt
from multitune.mixing.tokens import TokenTable, tokenise, tokenizer_fingerprint
from multitune.mixing.truncation import truncate, truncate_causal
from multitune.tasks.prompting import prompted_examples

PAIRS = [{"prompt": f"one two {number}", "completion": f"three {number}"} for number in range(25)]


@pytest.fixture
def table_of(tmp_path, gpt):
    """Tokenises a task with settings that a test may change."""

    def make(task, **changes):
        settings = {"tokenizer": gpt, "form": "causal", "max_length": 64, "split": "train", **changes}
        split, tokenizer, form = (settings.pop(name) for name in ("split", "tokenizer", "form"))
        return tokenise(task, split, tokenizer, form, tmp_path, cache=tmp_path / "cache", **settings)

    return make


def test_a_table_holds_every_example_as_encoded(toy_task, table_of, tmp_path, gpt):
    task = toy_task("pairs", PAIRS)
    table = table_of(task)
    assert (len(table), table.task, table.form) == (25, "pairs", "causal")
    assert (table.truncated, table.dropped, table.bad_rows) == (0, 0, 0)
    for index, example in enumerate(prompted_examples(task, "train", tmp_path)):
        ids, labels = encode(example, gpt, "causal", task.chat)
        row = table.row(index)
        assert row["input_ids"].tolist() == ids and row["labels"].tolist() == labels
        assert row["input_ids"].dtype == row["labels"].dtype == np.int32
        prompt = encode_prompt(example, gpt, "causal", task)
        assert ids[: len(prompt)] == prompt and set(labels[: len(prompt)]) == {-100}
        assert table.lengths[index] == len(ids)
        assert table.label_counts[index] == len(ids) - len(prompt)
    assert table.lengths.dtype == table.label_counts.dtype == np.int32


def test_more_rows_than_one_record_batch(toy_task, table_of, gpt):
    rows = [{"prompt": "cat", "completion": "dog " * (1 + number % 5)} for number in range(2 * tokens._BATCH + 7)]
    table = table_of(toy_task("many", rows))
    picked = [2 * tokens._BATCH + 6, 0, tokens._BATCH, tokens._BATCH - 1, 3]
    for index, ids in zip(picked, table.slices("input_ids", picked), strict=True):
        assert gpt.decode(ids).removesuffix("<|im_end|>").split() == ["cat"] + ["dog"] * (1 + index % 5)


def test_labels_of_an_encoder_are_values(toy_task, table_of, bert):
    rows = [{"text": "good", "label": "positive"}, {"text": "bad", "label": "negative"}]
    task = toy_task(
        "feel", rows, kind="label", prompt="{{ text }}", target="{{ label }}", choices=["negative", "positive"]
    )
    table = table_of(task, tokenizer=bert, form="encoder")
    assert table.values.tolist() == [1.0, 0.0]
    assert table.row(0)["labels"].tolist() == [] and table.label_counts.tolist() == [0, 0]


def test_seq2seq_tables_hold_prompts_and_targets(toy_task, table_of, t5):
    table = table_of(toy_task("pairs", PAIRS), tokenizer=t5, form="seq2seq")
    row = table.row(7)
    assert t5.decode(row["input_ids"]) == "one two 7</s>"
    assert t5.decode(row["labels"]) == "three 7</s>"
    assert table.label_counts[7] == len(row["labels"])


def test_a_second_call_reads_no_example(toy_task, table_of, monkeypatch):
    task = toy_task("pairs", PAIRS)
    first = table_of(task)
    monkeypatch.setattr(tokens, "prompted_examples", lambda *_, **__: pytest.fail("the source was read again"))
    second = table_of(task)
    assert second.path == first.path and second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.lengths, first.lengths)


@pytest.mark.parametrize(
    "change",
    [
        lambda make, tokenizer: make("pairs", [*PAIRS, {"prompt": "a", "completion": "b"}]),
        lambda make, tokenizer: make("pairs", PAIRS, prompt="say {{ prompt }}", target="{{ completion }}"),
        lambda make, tokenizer: make("pairs", PAIRS, chat="never"),
        lambda make, tokenizer: {"max_length": 63},
        lambda make, tokenizer: {"on_overlong": "drop"},
        lambda make, tokenizer: {"split": "test"},
        lambda make, tokenizer: {"form": "seq2seq"},
        lambda make, tokenizer: {"tokenizer": with_changes(tokenizer, chat_template="{{ messages }}")},
        lambda make, tokenizer: {"tokenizer": with_changes(tokenizer, eos_token="</s>")},
        lambda make, tokenizer: {"tokenizer": with_token(tokenizer, "<extra>")},
    ],
    ids=["data", "template", "chat", "length", "policy", "split", "form", "chat_template", "eos", "vocabulary"],
)
def test_whatever_makes_the_tokens_is_in_the_key(toy_task, table_of, gpt, change):
    before = table_of(toy_task("pairs", PAIRS))
    changed = change(toy_task, gpt)
    after = table_of(toy_task("pairs", PAIRS), **changed) if isinstance(changed, dict) else table_of(changed)
    assert after.fingerprint != before.fingerprint


def with_changes(tokenizer, **changes):
    changed = copy.deepcopy(tokenizer)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def with_token(tokenizer, token):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([token])
    return changed


def test_what_does_not_make_the_tokens_is_not_in_the_key(toy_task, table_of, gpt):
    before = table_of(toy_task("pairs", PAIRS))
    assert table_of(toy_task("pairs", PAIRS, weight=3.0, tags={"language": "en"})).fingerprint == before.fingerprint
    fingerprint = tokenizer_fingerprint(gpt)
    gpt(["one", "two three"], padding=True, truncation=True, max_length=3)  # leaves its traces in the tokenizer
    assert tokenizer_fingerprint(copy.deepcopy(gpt)) == fingerprint


def long_rows(count):
    return [{"prompt": "one two three", "completion": "four"}] * 3 + [
        {"prompt": "cat " * 50, "completion": "sat"}
    ] * count


def test_overlong_examples_are_truncated_and_counted(toy_task, table_of, gpt):
    table = table_of(toy_task("long", long_rows(2)), max_length=16)
    assert (len(table), table.truncated, table.dropped) == (5, 2, 0)
    text = gpt.decode(table.row(4)["input_ids"])
    assert table.lengths[4] == 16 and text.endswith("cat cat sat<|im_end|>")


def test_overlong_examples_are_dropped_and_counted(toy_task, table_of):
    table = table_of(toy_task("long", long_rows(2)), max_length=16, on_overlong="drop")
    assert (len(table), table.truncated, table.dropped) == (3, 0, 2)


def test_overlong_examples_are_refused_with_their_number_and_the_longest(toy_task, table_of, tmp_path):
    with pytest.raises(MultituneError, match=r"2 of 5 examples of task 'long' \(train\) are longer than 16") as caught:
        table_of(toy_task("long", long_rows(2)), max_length=16, on_overlong="refuse")
    assert "long.jsonl" in caught.value.what and "Raise max_length to" in caught.value.mend
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-written


def test_a_task_with_nothing_left_is_refused(toy_task, table_of):
    with pytest.raises(MultituneError, match="no train example that can be used: 2 were read, 2 dropped"):
        table_of(toy_task("long", long_rows(2)[3:]), max_length=16, on_overlong="drop")


def test_a_split_that_a_task_lacks_is_refused(toy_task, table_of):
    with pytest.raises(MultituneError, match="'pairs' has no validation data"):
        table_of(toy_task("pairs", PAIRS), split="validation")


def test_an_encoder_refuses_to_generate(toy_task, table_of, bert):
    with pytest.raises(MultituneError, match="cannot learn a task of kind 'generate'"):
        table_of(toy_task("pairs", PAIRS), tokenizer=bert, form="encoder")


def chat_rows():
    good = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]}
    bad = {"messages": [{"role": "tool", "content": "hello"}, {"role": "assistant", "content": "hello there"}]}
    return [good, bad, good]


def test_chats_that_cannot_be_encoded_are_refused_or_skipped_as_the_task_says(toy_task, table_of, chatml):
    strict = copy.deepcopy(chatml)
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
    )
    strict.chat_template = refusing + chatml.chat_template
    skipped = table_of(toy_task("chat", chat_rows(), on_bad_row="skip"), tokenizer=strict)
    assert (len(skipped), skipped.bad_rows) == (2, 1)
    with pytest.raises(MultituneError, match="no tools") as caught:
        table_of(toy_task("chat", chat_rows()), tokenizer=strict)
    assert caught.value.where.endswith("chat.jsonl:2")


def test_a_file_that_is_cut_short_is_made_anew(toy_task, table_of):
    task = toy_task("pairs", PAIRS)
    path = table_of(task).path
    path.with_suffix(".json").unlink()  # the facts are written last: without them the table is not finished
    path.write_bytes(path.read_bytes()[:100])
    assert len(table_of(task)) == 25


def test_a_cache_that_cannot_be_written_is_told(toy_task, tmp_path, gpt):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultituneError, match="cannot be written") as caught:
        tokenise(toy_task("pairs", PAIRS), "train", gpt, "causal", tmp_path, max_length=64, cache=tmp_path / "file")
    assert caught.value.where == str(tmp_path / "file")


def test_progress_counts_examples(toy_task, table_of):
    seen: list[int] = []
    table_of(toy_task("pairs", PAIRS), progress=seen.append)
    assert sum(seen) == 25


def _tokenise_in_process(task, tokenizer, folder, queue):
    table = tokenise(task, "train", tokenizer, "causal", folder, max_length=64, cache=folder / "cache")
    queue.put((table.fingerprint, int(table.lengths.sum())))


def test_processes_that_tokenise_at_once_all_get_whole_tables(toy_task, tmp_path, gpt):
    task = toy_task("pairs", PAIRS * 40)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_tokenise_in_process, args=(task, gpt, tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers[0] == answers[1]
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".arrow", ".json"]
    assert len(TokenTable(next((tmp_path / "cache").glob("*.arrow")))) == 1000


PROMPT, TARGET = list(range(10, 20)), [31, 32, 33]


@pytest.mark.parametrize(
    ("max_length", "ids"),
    [
        (13, [*PROMPT, *TARGET]),
        (12, [*PROMPT[1:], *TARGET]),
        (6, [17, 18, 19, *TARGET]),
        (4, [19, *TARGET]),
        (3, [19, 31, 32]),
        (2, [19, 31]),
    ],
)
def test_a_causal_example_keeps_its_target_and_the_end_of_its_prompt(max_length, ids):
    kept, labels = truncate_causal(PROMPT + TARGET, [-100] * 10 + TARGET, max_length, [])
    assert kept == ids
    assert labels == [token if token in TARGET else -100 for token in ids]


def test_truncation_keeps_bos_and_the_last_turn_of_a_chat():
    ids, labels = [1, *PROMPT, *TARGET], [-100, -100, 11, 12, *[-100] * 7, *TARGET]
    assert truncate_causal(ids, labels, 6, [1]) == ([1, 18, 19, *TARGET], [-100] * 3 + TARGET)
    # what is left of an earlier turn keeps its loss, but for its first token, which nothing whole comes before
    assert truncate_causal(ids, labels, 13, [1])[1] == [-100, -100, 12, *[-100] * 7, *TARGET]


@pytest.mark.parametrize(
    ("form", "ids", "labels"),
    [("encoder", [1, 10, 11, 12, 2], []), ("seq2seq", [1, 17, 18, 19, 2], [31, 32, 33])],
)
def test_other_forms_keep_their_beginning_or_end_and_what_the_tokenizer_adds(form, ids, labels):
    full_labels = TARGET if form == "seq2seq" else []
    assert truncate([1, *PROMPT, 2], full_labels, form, 5, ([1], [2])) == (ids, labels)


def test_facts_are_readable(toy_task, table_of):
    facts = json.loads(table_of(toy_task("pairs", PAIRS)).path.with_suffix(".json").read_text())
    assert facts["rows"] == 25 and facts["split"] == "train"
