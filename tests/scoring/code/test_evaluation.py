"""A code task from rows to ranked answers: what is trained, what is asked, what is shown before it, what is counted."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from multitune.errors import MultituneError
from multitune.mixing.encoding import encode, encode_prompt
from multitune.models.loading import merged_model
from multitune.scoring.code.evaluation import (
    BETWEEN,
    CodeAnswers,
    Decoding,
    Mode,
    demonstrations,
    endings,
    measured,
    mode_of,
    per_example,
    written,
)
from multitune.scoring.code.nearest import nearest, sentence_encoder
from multitune.scoring.code.sandbox import Limits, Outcome, Trial
from multitune.scoring.code.trials import run_answers, trials
from multitune.scoring.in_context.demonstrations import Demonstrations
from multitune.scoring.in_context.packing import fitting, pack
from multitune.tasks.prompting import prompted_examples
from multitune.tasks.task import Example, Prompted, Source, Task
from multitune.tasks.templates import compile_template
from tests.scoring.code.conftest import needs_walls

pytestmark = pytest.mark.filterwarnings("ignore:.*_checkpointing.*:FutureWarning")  # peft 0.21 asks for it

TASK = Task(
    name="calls",
    kind="generate",
    prompt="### Instruction:\n{{ nl }}\n### Response:\n```python\n",
    target="{{ code }}\n```",
    stop="```",
    max_new_tokens=8,
    program="{{ completion }}\n{{ test }}",
)


BEHIND = Demonstrations(separator=BETWEEN)


def row(nl: str, code: str, number: int = 0, **fields: str) -> Prompted:
    fields = {"nl": nl, "code": code, **fields}
    prompt = compile_template(TASK.prompt[0], "")(fields)
    target = compile_template(TASK.target[0], "")(fields)
    return Prompted(Example(f"row:{number}", f"row {number}", fields), 0, prompt, (), target, (), None, None)


STORE = [row("sort a list", "a.sort()", 1), row("close the file", "f.close()", 2), row("open a file", "open(f)", 3)]
QUERY = row("sort the list", "b.sort()", 9)


def test_the_loss_is_on_code_fence_and_end_alone(tokenizer):
    ids, labels = encode(QUERY, tokenizer, "causal", "auto")
    scored = [label for label in labels if label != -100]
    assert tokenizer.decode(scored) == "b.sort()\n```</s>"
    assert len(scored) == len(tokenizer.tokenize("b.sort()\n```")) + 1
    assert scored[-1] == tokenizer.eos_token_id
    assert ids[: -len(scored)] == encode_prompt(QUERY, tokenizer, "causal", TASK)


def test_the_instruction_changes_nothing_of_what_is_scored(tokenizer):
    scored = []
    for nl in ("sort", "sort `b`\n```python\nx\n```", "né 😀", "x" * 50):
        _, labels = encode(row(nl, "b.sort()"), tokenizer, "causal", "auto")
        scored.append([label for label in labels if label != -100])
    assert all(one == scored[0] for one in scored)


def test_no_demonstrations_are_zero_shot(backbone_of):
    backbone = backbone_of("llama")
    shown = {name: demonstrations([QUERY], STORE, mode_of(name)) for name in ("zero-shot", "icl:0", "rag:0")}
    assert all(few == [[]] for few in shown.values())
    answers = [written(backbone, TASK, [QUERY], few, Decoding()) for few in shown.values()]
    assert answers[0] == answers[1] == answers[2]


def test_a_demonstration_is_what_is_trained_on(tokenizer):
    both = pack(QUERY, STORE[:2], BEHIND, as_chat=False)
    assert both.prompt == "".join(one.prompt + one.target + "\n" for one in STORE[:2]) + QUERY.prompt
    assert both.target == QUERY.target


def test_random_demonstrations_are_the_seeds_and_the_same_for_all():
    store = [row(f"do {n}", f"f({n})", n) for n in range(50)]
    queries = [row("do it", "g()", 100), row("do that", "h()", 101)]
    first, second = demonstrations(queries, store, Mode("icl", 3, 42))
    assert first == second
    assert demonstrations(queries, store, Mode("icl", 2, 42))[0] == first[:2]
    assert demonstrations(queries, store, Mode("icl", 3, 777))[0] != first


def test_the_nearest_one_is_the_query_itself_where_it_is_in_the_store():
    texts = [one.prompt for one in STORE]
    for embed in (None, lambda some: np.array([[float(len(text)), 1.0] for text in some])):
        if embed is not None:
            normalised = lambda some, embed=embed: embed(some) / np.linalg.norm(embed(some), axis=1, keepdims=True)  # noqa: E731
            assert nearest(texts, texts[1:2], 1, normalised)[0, 0] == 1
        else:
            assert nearest(texts, texts, 1)[:, 0].tolist() == [0, 1, 2]
    assert nearest(texts, [QUERY.prompt], 3)[0, 0] == 0
    assert nearest(["same", "same", "other"], ["same"], 2).tolist() == [[0, 1]]
    assert nearest(texts, [QUERY.prompt], 0).shape == (1, 0)


def test_so_what_is_scored_is_never_in_the_store():
    ((first,),) = demonstrations([STORE[1]], STORE, mode_of("rag:1"))
    assert first != STORE[1]
    assert all(STORE[1] not in some for some in demonstrations([STORE[1]], STORE, mode_of("icl:2")))


def test_too_long_a_prompt_loses_whole_demonstrations_the_least_near_first(backbone_of):
    backbone = backbone_of("llama")  # 128 positions, a token per byte
    task = TASK.model_copy(update={"max_new_tokens": 2})
    ((asked, used),) = fitting(backbone, task, [QUERY], [[STORE[1], STORE[0]]], BEHIND)
    assert (asked, used) == (pack(QUERY, [STORE[0]], BEHIND, as_chat=False), 1)
    ((both, whole),) = fitting(backbone, task, [QUERY], [STORE[:1]], BEHIND)
    assert (both.prompt.endswith(QUERY.prompt), whole) == (True, 1)
    with pytest.raises(MultituneError, match=r"This row alone does not fit"):
        fitting(backbone, task, [row("x" * 200, "y")], [STORE[:1]], BEHIND)


def test_the_nearest_one_stands_next_to_the_query():
    ((far, near),) = demonstrations([QUERY], STORE, mode_of("rag:2"))
    assert near == STORE[nearest([one.prompt for one in STORE], [QUERY.prompt], 1)[0, 0]] == STORE[0]
    assert far in STORE[1:]


@pytest.mark.parametrize("text", ["icl", "rag:", "icl:-1", "few:3", "zero"])
def test_modes_that_do_not_exist_are_refused(text):
    with pytest.raises(MultituneError, match="There is no mode"):
        mode_of(text)


def test_too_many_demonstrations_are_refused():
    with pytest.raises(MultituneError, match="4 demonstrations are asked for, and the training rows are 3"):
        demonstrations([QUERY], STORE, mode_of("icl:4"))


def test_an_encoder_of_sentences_is_asked_for_by_its_path(tmp_path):
    with pytest.raises(MultituneError):
        sentence_encoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("mode", ["zero-shot", "icl:1", "rag:1"])
def test_answers_are_ranked_and_cut_at_the_fence(backbone_of, mode):
    backbone = backbone_of("llama")
    rows = [QUERY, row("open it", "open(x)", 10)]
    answers = written(backbone, TASK, rows, demonstrations(rows, STORE, mode_of(mode)), Decoding(beams=3))
    assert [one.id for one in answers] == ["row:9", "row:10"]
    assert [one.reference for one in answers] == ["b.sort()", "open(x)"]
    assert all(len(one.answers) == 3 and "```" not in "".join(one.answers) for one in answers)


def test_what_is_not_written_is_refused(backbone_of):
    with pytest.raises(MultituneError, match="is not answered by writing"):
        written(backbone_of("llama"), TASK.model_copy(update={"kind": "regress"}), [QUERY], [[]], Decoding())


def answers(*texts: str, reference: str = "b", passed: str = "") -> CodeAnswers:
    outcomes = tuple(Outcome("passed" if one == "1" else "failed") for one in passed) or None
    return CodeAnswers("id", "row", reference, texts, 0, outcomes)


def test_what_is_measured():
    several = [answers("a", "b", "c"), answers("b", "b", "a")]
    values = per_example(several, Decoding(beams=3))
    assert {name: value.tolist() for name, value in values.items()} == {
        "em@1": [0.0, 1.0], "em@2": [1.0, 1.0], "ast_match": [0.0, 1.0],
    }  # fmt: skip
    found = measured(several, Decoding(beams=3))
    assert found["em@1"]["value"] == 0.5
    assert found["em@1"]["low"] <= 0.5 <= found["em@1"]["high"]
    assert 0 < found["codebleu"]["value"] < 1


def test_samples_have_pass_at_k_and_beams_have_ranks():
    drawn = [answers(*"abcde", passed="01001")]
    assert per_example(drawn, Decoding(samples=5, temperature=1.0))["pass@2"].tolist() == pytest.approx([0.7])
    ranked = per_example(drawn, Decoding(beams=5))
    assert [ranked[f"first@{k}"].tolist() for k in (1, 2, 5)] == [[0.0], [1.0], [1.0]]
    assert "pass@1" not in ranked
    assert endings(drawn) == {"failed": 3, "passed": 2}
    assert "pass@1" not in per_example([answers("a")], Decoding())


def test_the_body_of_a_function_is_code():
    body = "    if a:\n        return b\n    return c"
    other = CodeAnswers("id", "row", body, ("    if a :\n        return b # so\n\n    return c\n\n",))
    assert per_example([other], Decoding())["ast_match"].tolist() == [1.0]
    assert measured([other], Decoding())["codebleu"]["value"] > 0.5


@needs_walls
def test_programs_are_the_tasks_template_over_the_row():
    tested = row("give one", "1", test="assert x == 1")
    programs = [[Trial("x = 1\nassert x == 1")], [Trial("x = 2\nassert x == 1")]]
    assert trials(TASK, tested, ["x = 1", "x = 2"]) == programs
    ran = run_answers(TASK, [tested], [answers("x = 1", "x = 2", "exit()")], Limits())
    assert [one.status for one in ran[0].outcomes] == ["passed", "failed", "failed"]
    with pytest.raises(MultituneError, match="does not say how an answer is tested"):
        trials(TASK.model_copy(update={"program": None}), tested, ["x"])
    with pytest.raises(MultituneError, match="cannot be made"):
        trials(TASK, QUERY, ["x"])


CASES = TASK.model_copy(update={"program": None, "cases": "cases"})


@needs_walls
@pytest.mark.parametrize(
    ("cases", "texts", "shares", "why"),
    [
        (
            {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]},
            [
                "print(sum(map(int, input().split())))",
                "print(3)",
                "print(3.0000001)\nexit()",
            ],
            (1.0, 0.5, 0.5),
            "case 2 of 2: it printed '3\\n' instead of '7\\n'",
        ),
        (
            json.dumps({"inputs": [[[3, 1]], [[1, 2, 0]]], "outputs": [[1, 3], [[0, 1, 2]]], "fn_name": "order"}),
            [
                "class Solution:\n    def order(self, some): return tuple(sorted(some))",
                "def order(some): return some[::-1]",
                "def order(some): exit()",
            ],
            (1.0, 0.5, 0.0),
            "case 2 of 2: AssertionError in line 6: [0, 2, 1] instead of [[0, 1, 2]]",
        ),
    ],
)
def test_cases_are_read_and_printed_or_called(cases, texts, shares, why):
    given = [answers(*texts)]
    (ran,) = run_answers(CASES, [row("add", "", cases=cases)], given, Limits())
    assert (ran.cases, ran.outcomes[1].why) == (shares, why)
    assert [one.status for one in ran.outcomes] == ["passed", "failed", "failed"]
    values = per_example([ran], Decoding(samples=3, temperature=1.0))
    assert values["test_cases"].tolist() == pytest.approx([sum(shares) / 3])
    assert values["pass@1"].tolist() == pytest.approx([1 / 3])  # strict: all cases of an answer


@pytest.mark.parametrize(
    "cases",
    [None, "x", {}, {"inputs": [], "outputs": []}, {"inputs": ["1"], "outputs": []},
     {"inputs": [1], "outputs": [1], "fn_name": "f"}, {"inputs": [[1]], "outputs": [1], "fn_name": "f()"}],
)  # fmt: skip
def test_a_row_without_test_cases_is_refused(cases):
    with pytest.raises(MultituneError, match="holds no test cases"):
        trials(CASES, row("add", "", cases=cases), ["x"])


def test_a_program_belongs_to_a_text():
    with pytest.raises(ValueError, match="has nothing to run"):
        Task(name="a", kind="label", program="x")
    with pytest.raises(ValueError, match="has nothing to run"):
        Task(name="a", kind="label", cases="x")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        IA3Config(
            target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
    ],
)  # fmt: skip
def test_merged_and_unmerged_write_the_same(backbone_of, config):
    backbone = backbone_of("llama")
    torch.manual_seed(0)
    tuned = get_peft_model(copy.deepcopy(backbone.model), copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, one in tuned.named_parameters():
            if "ia3" in name:
                one.uniform_(0.5, 1.5)
    adapted = dataclasses.replace(backbone, model=tuned)
    merged = dataclasses.replace(backbone, model=merged_model(adapted).eval())
    shown = [[] for _ in STORE]
    wrote = [written(one, TASK, STORE, shown, Decoding()) for one in (backbone, adapted, merged)]
    assert wrote[1] == wrote[2] != wrote[0]


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_prompts_cannot_be_merged(backbone_of, config):
    backbone = backbone_of("llama")
    model = get_peft_model(copy.deepcopy(backbone.model), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(MultituneError, match="cannot be added into the weights"):
        merged_model(dataclasses.replace(backbone, model=model))


@needs_walls
def test_humaneval_is_a_task_with_a_program(tmp_path):
    """Answers keep their indentation: they continue the prompt."""
    file = Path(__file__).parents[4] / "shared/data/humaneval/test.jsonl"
    if not file.is_file():
        pytest.skip("../shared/data/humaneval is not beside the repository")
    task = Task(
        name="humaneval", kind="generate", test=Source(path=str(file), rows=8), prompt="{{ prompt }}",
        target="{{ canonical_solution }}",
        program="{{ prompt }}{{ completion }}\n{{ test }}\ncheck({{ entry_point }})\n",
    )  # fmt: skip
    rows = list(prompted_examples(task, "test", tmp_path))
    texts = [(row.target, "    return NotImplemented\n", "    pass\n" + row.target) for row in rows]
    given = [CodeAnswers(row.example.id, "", row.target.strip(), some) for row, some in zip(rows, texts, strict=True)]
    ran = run_answers(task, rows, given, Limits())
    assert [[one.status for one in some.outcomes] for some in ran] == [["passed", "failed", "passed"]] * 8
    assert per_example(ran, Decoding(samples=3, temperature=1.0))["pass@1"].tolist() == pytest.approx([2 / 3] * 8)
