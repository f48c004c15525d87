"""The small libraries of system 34, and its arms at a size of seconds."""

from __future__ import annotations

import pytest

from multitune.mixing.encoding import encode, encode_prompt
from multitune.systems import small_libraries
from multitune.systems.peft_for_code import ARMS, CLAIMS, run_small
from multitune.systems.small_libraries import NAMES, ROWS, library_task, rows, small_decoder
from multitune.tasks.prompting import prompted_examples

BRIEF = {"rows": 16, "steps": 1, "batch_size": 4, "learning_rate": 1e-3}


def test_libraries_share_verbs_and_not_names():
    old = list(rows("old", 0, 0, 300, False))
    north = list(rows("north", 0, 0, 300, False))
    assert old[0]["code"].split()[1] == "("
    assert north[0]["code"].split()[1] == "."
    called = {row["instruction"].split()[0]: row["code"].split()[2] for row in north}
    assert sorted(called.values()) == sorted(NAMES)
    assert called != {verb: f"f_{verb}" for verb in called}
    assert all(row["code"].split()[2] == called[row["instruction"].split()[0]] for row in north)
    assert next(rows("south", 0, 0, 1, True))["instruction"].split()[0] == "south"


def test_splits_do_not_meet(tmp_path):
    task = library_task("north", 3)
    seen = [row.prompt for split in ROWS for row in prompted_examples(task, split, tmp_path)]
    assert len(seen) == len(set(seen)) == 600


def test_the_decoder_and_what_the_methods_train():
    from multitune.adaptation.adapting import adapt
    from multitune.adaptation.config import AdaptationConfig

    assert sum(one.numel() for one in small_decoder(0).model.parameters()) == 93_760
    trained = {}
    for arm in ARMS[4:8]:
        model = adapt(small_decoder(0), AdaptationConfig(**arm.settings["adapt"])).model
        trained[arm.name] = sum(one.numel() for one in model.parameters() if one.requires_grad)
    # LoRA: r (d_in + d_out) of q, k, v, o, gate, up, down; IA3: outputs of q, k, v, inputs of gate, up, down
    assert trained == {
        "LoRA": 2 * 16 * (4 * 128 + 3 * 192),
        "IA3": 2 * (3 * 64 + 64 + 64 + 128),
        "prefix tuning": 10 * 2 * 2 * 64,
        "prompt tuning": 20 * 64,
    }


def test_only_the_call_and_the_end_are_learned(tmp_path):
    backbone, task = small_decoder(0), library_task("north", 0)
    row = next(prompted_examples(task, "train", tmp_path))
    ids, labels = encode(row, backbone.tokenizer, "causal", "auto")
    learned = [label for label in labels if label != -100]
    words = backbone.tokenizer.convert_ids_to_tokens(learned)
    assert words == [*row.example.fields["code"].split(), "```", "<eos>"]
    assert ids[: -len(learned)] == encode_prompt(row, backbone.tokenizer, "causal", task)


def test_the_arms_tell_what_the_claims_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(small_libraries, "ROWS", {"train": (0, 16), "validation": (16, 4), "test": (20, 8)})
    ran = {}
    for arm in ARMS:
        if arm.name in ("RAG(3)", "LoRA", "LoRA, both"):  # one of each kind; the others differ in names and numbers
            settings = {**arm.settings, "before": BRIEF, "steps": 1, "rates": [1e-3], "batch_size": 4}
            ran[arm.name] = run_small(settings, 0, tmp_path / arm.name.replace(" ", "-"))
    arms = {arm.name: ran.get(arm.name, ran["LoRA"]) for arm in ARMS}
    assert all({"em", "ast_match", "codebleu", "old", "trained", "rate"} <= set(one) for one in arms.values())
    assert arms["LoRA, both"]["em"] == pytest.approx(
        (arms["LoRA, both"]["em/north"] + arms["LoRA, both"]["em/south"]) / 2
    )
    assert all(isinstance(claim.effect(arms), float) for claim in CLAIMS)
