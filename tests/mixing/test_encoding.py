"""Prompt, target and loss of one example as ids. The laws hold for every sort of tokenizer and backbone."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.mixing.encoding import encode, encode_all, encode_choice, encode_prompt, encode_prompts, plain_prompt
from multitune.tasks.task import Task

PLAIN = Task(name="plain", train={"path": "toy.jsonl"})
CHAT = Task(name="chat", train={"path": "toy.jsonl"}, chat="always")
CHATS = [
    (("user", "hello there"), ("assistant", "hello")),
    (("system", "be kind"), ("user", "one two"), ("assistant", "three"), ("user", "four"), ("assistant", "five six")),
]


@pytest.fixture(params=["gpt", "llama", "t5", "bert", "chatml", "marked"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def labelled(ids, labels):
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return [token for token, label in zip(ids, labels, strict=True) if label != -100]


texts = st.text(alphabet="abc dog\n.é<", max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, target=texts)
@pytest.mark.parametrize("form", ["causal", "seq2seq"])
def test_an_example_is_its_prompt_its_choice_and_the_end(tokenizer, prompted, form, prompt, target):
    example = prompted(prompt, target)
    ids, labels = encode(example, tokenizer, form, "auto")
    prompt_ids = encode_prompt(example, tokenizer, form, PLAIN)
    choice_ids = encode_choice(example, target, tokenizer, form, PLAIN)
    end = [tokenizer.eos_token_id]
    if form == "causal":
        assert ids == prompt_ids + choice_ids + end
        assert labels[0] == -100
        assert labelled(ids[1:], labels[1:]) == (choice_ids + end)[max(0, 1 - len(prompt_ids)) :]
    else:
        assert ids == prompt_ids
        assert labels == choice_ids + end


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("the cat", "sat", "the cat sat"),
        ("the cat ", "sat", "the cat sat"),
        ("the cat\n", "sat", "the cat\nsat"),
        ("the cat", " sat", "the cat sat"),
        ("", "sat", "sat"),
        ("the cat", "", "the cat"),
    ],
)
def test_one_space_stands_between_a_plain_prompt_and_its_target(gpt, prompted, prompt, target, text):
    ids, _ = encode(prompted(prompt, target), gpt, "causal", "auto")
    assert gpt.decode(ids) == text + "<|im_end|>"


def test_a_tokenizer_that_marks_beginnings_gets_no_second_space(llama, prompted):
    ids, labels = encode(prompted("the cat", "sat"), llama, "causal", "auto")
    assert llama.convert_ids_to_tokens(ids)[0] == "<s>"
    assert llama.decode(ids) == "<s> the cat sat</s>"
    assert llama.decode(labelled(ids, labels)) == "sat</s>"


def test_beginning_and_end_are_what_the_tokenizer_adds_itself(gpt, llama, t5, bert, prompted):
    example = prompted("the cat", "sat")

    def ends(tokenizer, form):
        tokens = tokenizer.convert_ids_to_tokens(encode(example, tokenizer, form, "auto")[0])
        return tokens[0], tokens[-1]

    assert ends(gpt, "causal") == ("the", "<|im_end|>")
    assert ends(llama, "causal") == ("<s>", "</s>")
    assert ends(t5, "seq2seq")[1] == "</s>"
    assert ends(gpt, "seq2seq")[1] == "<|im_end|>"
    assert ends(bert, "encoder") == ("<s>", "</s>")
    assert ends(gpt, "encoder")[0] == "the"
    assert encode(example, bert, "encoder", "auto")[1] == []


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ["chatml", "marked"])
def test_a_chat_goes_through_the_template_and_only_the_assistant_carries_loss(request, prompted, name, chat):
    tokenizer = request.getfixturevalue(name)
    example = prompted(messages=chat)
    ids, labels = encode(example, tokenizer, "causal", "auto")
    messages = [{"role": role, "content": content} for role, content in chat]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids) == rendered.removesuffix("\n")
    replies = [content + "<|im_end|>" for role, content in chat if role == "assistant"]
    assert tokenizer.decode(labelled(ids, labels)) == "".join(replies)
    prompt_ids = encode_prompt(example, tokenizer, "causal", PLAIN)
    choice_ids = encode_choice(example, chat[-1][1], tokenizer, "causal", PLAIN)
    assert ids == prompt_ids + choice_ids + [tokenizer.eos_token_id]


@pytest.mark.parametrize("chat", CHATS)
def test_generation_markers_and_comparing_turns_find_the_same_tokens(chatml, marked, prompted, chat):
    example = prompted(messages=chat)
    assert encode(example, chatml, "causal", "auto") == encode(example, marked, "causal", "auto")


def test_a_prompt_and_a_target_become_a_chat_where_the_task_says_always(chatml, prompted):
    example = prompted("hello there", "hello")
    as_chat = prompted(messages=(("user", "hello there"), ("assistant", "hello")))
    assert encode(example, chatml, "causal", "always") == encode(as_chat, chatml, "causal", "auto")
    assert encode_prompt(example, chatml, "causal", CHAT) == encode_prompt(as_chat, chatml, "causal", PLAIN)


def test_a_chat_whose_reply_is_asked_for_needs_no_reply_of_its_own(chatml, prompted):
    asked = prompted(messages=CHATS[1][:-1], target="five six")
    answered = prompted(messages=CHATS[1])
    assert encode(asked, chatml, "causal", "auto") == encode(answered, chatml, "causal", "auto")


def test_messages_without_a_template_become_lines_with_names(gpt, prompted):
    example = prompted(messages=CHATS[1])
    ids, labels = encode(example, gpt, "causal", "auto")
    text = "System: be kind\nUser: one two\nAssistant: three\nUser: four\nAssistant: five six"
    assert gpt.decode(ids) == text + "<|im_end|>"
    assert gpt.decode(labelled(ids, labels)) == " three five six<|im_end|>"
    assert plain_prompt(example) == text.removesuffix(" five six")


def test_a_template_without_eos_gets_it_after_the_last_turn(chatml, prompted):
    import copy

    gemma = copy.deepcopy(chatml)
    gemma.eos_token = "</s>"
    ids, labels = encode(prompted(messages=CHATS[0]), gemma, "causal", "auto")
    assert gemma.decode(labelled(ids, labels)) == "hello<|im_end|>\n</s>"


def test_many_at_once_are_the_same_as_each_alone(tokenizer, prompted):
    examples = [prompted("the cat", "sat"), prompted(messages=CHATS[0]), prompted("dog", "ran"), prompted("a\n", "b")]
    assert encode_all(examples, tokenizer, "causal", "auto") == [
        encode(example, tokenizer, "causal", "auto") for example in examples
    ]
    assert encode_prompts(examples, tokenizer, "causal", PLAIN) == [
        encode_prompt(example, tokenizer, "causal", PLAIN) for example in examples
    ]


def test_templates_that_rewrite_earlier_turns_are_refused(chatml, prompted):
    import copy

    forgetful = copy.deepcopy(chatml)
    forgetful.chat_template = (
        "{{ messages | length }}{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(MultituneError, match="cannot be told apart") as caught:
        encode(prompted(messages=CHATS[1]), forgetful, "causal", "auto")
    assert caught.value.where == "toy.jsonl:1"
    assert "generation" in caught.value.mend


def test_chats_that_the_template_refuses_name_the_row(chatml, prompted):
    import copy

    strict = copy.deepcopy(chatml)
    strict.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(MultituneError, match="no system turns here"):
        encode(prompted(messages=CHATS[1]), strict, "causal", "auto")


def test_always_needs_a_template_and_training_needs_an_end(gpt, prompted):
    import copy

    with pytest.raises(MultituneError, match="no chat template"):
        encode(prompted("a", "b"), gpt, "causal", "always")
    endless = copy.deepcopy(gpt)
    endless.eos_token = None
    with pytest.raises(MultituneError, match="no end-of-text token"):
        encode(prompted("a", "b"), endless, "causal", "auto")
