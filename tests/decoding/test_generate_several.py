"""Several texts after one prompt: the beams of a Markov chain are known, and none depends on its company."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from multitune.decoding.generate import generate, generate_several
from multitune.errors import MultituneError

pytestmark = pytest.mark.filterwarnings("ignore:.*_checkpointing.*:FutureWarning")  # peft 0.21 asks for it

FORK = {
    "a": {"b": 0.6, "c": 0.4},
    "b": {"x": 0.55, "y": 0.45},
    "c": {"z": 1.0},
    "x": {"</s>": 1.0},
    "y": {"</s>": 1.0},
    "z": {"</s>": 1.0},
}


def test_beams_come_in_the_order_of_their_probability(chain, ids):
    # 0.4 for cz, 0.33 for bx, 0.27 for by; greedy takes the likelier first letter
    backbone = chain(FORK)
    assert generate(backbone, [ids("a")], max_new_tokens=5) == ["bx"]
    found = generate_several(backbone, [ids("a"), ids("b")], beams=3, max_new_tokens=5)
    assert found[0] == ["cz", "bx", "by"]
    assert found[1][:2] == ["x", "y"]


def test_beams_end_before_a_stop_string(chain, ids):
    circle = {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}, "d": {"a": 1.0}}
    found = generate_several(chain(circle), [ids("a")], beams=2, max_new_tokens=12, stop=["da"])
    assert found[0][0] == "bc"


def test_samples_follow_the_seed_and_are_as_many_as_asked(chain, ids):
    ways = {"samples": 40, "temperature": 1.0, "max_new_tokens": 5}
    (drawn,) = generate_several(chain(FORK), [ids("a")], seed=1, **ways)
    assert len(drawn) == 40
    assert set(drawn) == {"bx", "by", "cz"}
    assert generate_several(chain(FORK), [ids("a")], seed=1, **ways) == [drawn]
    assert generate_several(chain(FORK), [ids("a")], seed=2, **ways) != [drawn]


def test_one_way_is_greedy(random_backbone, ids):
    backbone = random_backbone("llama")
    prompts = [ids("ab"), ids("abcdef")]
    assert [[text] for text in generate(backbone, prompts, max_new_tokens=6)] == generate_several(
        backbone, prompts, max_new_tokens=6
    )


@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", None), ("bart", None), ("llama", PromptTuningConfig), ("llama", PrefixTuningConfig)],
)
def test_beams_do_not_depend_on_their_batch(random_backbone, family, config):
    backbone = random_backbone(family)
    if config is not None:
        torch.manual_seed(1)
        backbone.model = get_peft_model(
            copy.deepcopy(backbone.model), config(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ).eval()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, len(backbone.tokenizer), size=n).tolist() for n in (4, 4, 9)]
    together = generate_several(backbone, prompts, beams=3, max_new_tokens=6)
    assert all(len(beams) == 3 for beams in together)
    alone = [generate_several(backbone, [prompt], beams=3, max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert generate_several(backbone, prompts, beams=3, max_new_tokens=6, batch_tokens=1) == alone


def test_what_does_not_go_together_is_refused(chain, ids):
    with pytest.raises(ValueError, match="do not go with"):
        generate_several(chain(FORK), [ids("a")], beams=2, temperature=1.0)
    with pytest.raises(ValueError, match="do not go with"):
        generate_several(chain(FORK), [ids("a")], samples=2)
    with pytest.raises(MultituneError, match="stop string is empty"):
        generate_several(chain(FORK), [ids("a")], beams=2, stop=[""])
