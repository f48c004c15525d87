"""System 12, the survey of parameter-efficient methods: one registry, twenty of its methods at one budget.

The small reproduction teaches a decoder that knows four skills a fifth, which is one of them with its answer turned
around, by every method at about 1 % of the weights, and holds their losses and their frozen weights against the card.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

    from multitune.models.loading import Backbone
    from multitune.systems.skill_language import Skill

LEARNING = {"steps": 200, "rows": 64, "held_out": 400, "budget": 0.01}
TIED = 0.01
"""Nats per token within which two losses count as tied."""


@lru_cache(maxsize=1)
def pretrained(seed: int, steps: int) -> LlamaForCausalLM:
    """Return a decoder of two layers, width 64, with biases in its attention, that knows four skills."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from multitune.systems import skill_language as language

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=language.VOCABULARY,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                attention_bias=True,
                pad_token_id=language.PADDING,
                eos_token_id=language.END,
                bos_token_id=None,
            )
        )
    language.pretrain(model, known_skills(), steps=steps, learning_rate=3e-3, rows=128, seed=seed)
    return model


def known_skills() -> list[Skill]:
    """Return what the base knows."""
    from multitune.systems import skill_language as language

    return [language.copy(0), language.reverse(1), language.add_seven(2), language.triple_reversed(3)]


def new_skill() -> Skill:
    """Return what is taught: each of four symbols plus 7 modulo 40, as the base knows it, but backwards."""
    from multitune.systems.skill_language import SYMBOLS, Skill

    return Skill("add 7 reversed", 4, 4, lambda prompt_NI: ((prompt_NI + 7) % SYMBOLS).flip(-1))


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Teach the new skill by one method at every learning rate; the best on validation rows is measured on others.

    Returns:
        ``before`` and ``loss``: nats per answered token before and after; ``fall``: 1 - loss / before; ``accuracy`` of
        whole answers; ``numbers`` that train and ``share`` of the base's; ``rate`` chosen; ``moved``: entries that
        changed and should not have; ``milliseconds`` of process time per step.
    """
    import torch

    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone

    skill, rows = new_skill(), settings["held_out"]
    validation, test = (skill.draw(rows, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    base = pretrained(seed, settings["base_steps"])
    base.save_pretrained(folder / "base")
    before = measured(Backbone(base, None, "causal", ModelConfig(name="base")), skill, test)[0]
    tried = {}
    for rate in settings["rates"]:
        backbone = _adapted(base, folder / "base", settings, seed)
        kept = _kept_values(backbone)
        started = time.process_time()
        teach(backbone, skill, settings, rate, seed)
        seconds = time.process_time() - started
        tried[rate] = measured(backbone, skill, validation)[0], backbone, _moved(backbone, kept), seconds
    rate = min(tried, key=lambda one: tried[one][0])
    _, backbone, _, seconds = tried[rate]
    loss, accuracy = measured(backbone, skill, test)
    numbers = _numbers(backbone)
    return {
        "before": before,
        "loss": loss,
        "fall": 1 - loss / before,
        "accuracy": accuracy,
        "numbers": float(numbers),
        "share": numbers / base.num_parameters(),
        "rate": rate,
        "moved": float(max(one[2] for one in tried.values())),
        "milliseconds": 1000 * seconds / settings["steps"],
    }


def _adapted(base: LlamaForCausalLM, place: Path, settings: Mapping[str, Any], seed: int) -> Backbone:
    """Return a copy of the base, adapted by the settings' method: at the budget where it has a size."""
    from multitune.adaptation import METHODS, AdaptationConfig, adapt, schedule_ranks
    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone

    method = settings["adapt"]["method"]
    sized = {"budget": settings["budget"]} if METHODS[method].size is not None else {}
    backbone = Backbone(copy.deepcopy(base), None, "causal", ModelConfig(name=str(place)))
    adapted = adapt(backbone, AdaptationConfig(**settings["adapt"], **sized), steps=settings["steps"], seed=seed)
    schedule_ranks(adapted.model, settings["steps"])
    return adapted


def teach(backbone: Backbone, skill: Skill, settings: Mapping[str, Any], rate: float, seed: int) -> None:
    """Train on the skill's rows: AdamW at a constant rate, by the rule of the method.

    Args:
        backbone: adapted; changed in place.
        skill: drawn from anew at every step.
        settings: ``steps`` and ``rows`` of each.
        rate: of learning.
        seed: of the rows.
    """
    import torch

    from multitune.adaptation import allocate_ranks
    from multitune.adaptation.adapting import orthogonality
    from multitune.mixing.shuffling import seed_of
    from multitune.training.losses import LossModule
    from multitune.training.updates import follow_rule, own_optimizer

    generator = torch.Generator().manual_seed(seed_of("rows", seed) % 2**63)
    rule, losses, done = backbone.update, LossModule(backbone), 0
    options: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.999)}
    optimizer = own_optimizer(rule, losses, torch.optim.AdamW, options, 0.0) if rule is not None else None
    if optimizer is None:
        trains = [p for p in backbone.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trains, weight_decay=0.0, **options)
    if rule is not None:
        masks = _masks(backbone, skill, generator) if rule.needs_fisher else {}
        follow_rule(optimizer, backbone.model, rule, masks, lambda: done)
    backbone.model.train()
    for step in range(settings["steps"]):
        done = step
        optimizer.zero_grad()
        loss = losses(_batch(skill, skill.draw(settings["rows"], generator))).mean()
        penalty = orthogonality(backbone.model)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        allocate_ranks(backbone.model, step)
    backbone.model.eval()


def _masks(backbone: Backbone, skill: Skill, generator: Any) -> dict[str, Tensor]:
    from multitune.adaptation.updates import kept_entries, largest_entries
    from multitune.training.updates import fisher_information

    prompts = skill.draw(backbone.update.samples, generator)
    information = fisher_information(backbone, [_batch(skill, prompt[None]) for prompt in prompts])
    entries = sum(score.numel() for score in information.values())
    return largest_entries(information, kept_entries(backbone.update.config, entries))


def _batch(skill: Skill, prompt_NI: Tensor) -> dict[str, Tensor]:
    """Return rows as training batches them: unpacked, each an example of its own."""
    import torch

    from multitune.systems.skill_language import encode
    from multitune.training.losses import labelled

    input_ids, labels = encode(skill, prompt_NI)
    rows, length = input_ids.shape
    batch = {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": torch.arange(length).expand(rows, -1),
        "example_ids": torch.arange(rows)[:, None].expand(-1, length),
        "task_ids": torch.zeros(rows, length, dtype=torch.long),
    }
    return batch | labelled(batch, "causal")._asdict()


def measured(backbone: Backbone, skill: Skill, prompt_NI: Tensor) -> tuple[float, float]:
    """Return nats per answered token, and the share of whole answers that greedy decoding would write."""
    import torch

    from multitune.models.hidden import head_logits, hidden_states

    backbone.model.eval()
    batch = _batch(skill, prompt_NI)
    with torch.no_grad():
        logits = head_logits(backbone.model, hidden_states(backbone.model, batch))[:, :-1]
    wanted = batch["labels"][:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    right = (logits.argmax(-1) == wanted) | (wanted == -100)
    return float(nats), float(right.all(-1).double().mean())


def _numbers(backbone: Backbone) -> int:
    from multitune.adaptation.updates import trained_numbers

    return trained_numbers(backbone.model, backbone.update)


def _masked(backbone: Backbone) -> bool:
    return backbone.update is not None and not hasattr(backbone.model, "peft_config")


def _kept_values(backbone: Backbone) -> dict[str, Tensor]:
    """Return copies of what the method may not change, or may change a part of where it masks."""
    from multitune.adaptation.updates import moving_bases

    along = {f"{path}.base_layer.weight" for path, _ in moving_bases(backbone.model, backbone.update)}
    kept = {name: p for name, p in backbone.model.named_parameters() if _masked(backbone) or not p.requires_grad}
    return {name: p.detach().clone() for name, p in kept.items() if name not in along}


def _moved(backbone: Backbone, before: Mapping[str, Tensor]) -> int:
    """Return how many entries have changed that should not have."""
    now = dict(backbone.model.named_parameters())
    changed = sum(int((now[name] != value).sum()) for name, value in before.items())
    return max(0, changed - _numbers(backbone)) if _masked(backbone) else changed


SLOW, MIDDLE, FAST, PROMPTS = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1)
ATTENTION: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
"""Where matrices are reparameterised: on all of them not even rank 1 stays within 1 % of so small a base."""


def _arm(method: str, told: str, rates: tuple[float, ...], name: str | None = None, **options: Any) -> Arm:
    settings = {**LEARNING, "base_steps": 1500, "adapt": {"method": method, **options}, "rates": list(rates)}
    return Arm(name or method, told, settings)


ARMS = (
    _arm("full", "every weight", SLOW),
    _arm("child_tuning", "every weight, a random 30 % of the entries at each step", SLOW, variant="F"),
    _arm("fish", "the entries of most Fisher information", MIDDLE),
    _arm("bitfit", "the biases", FAST),
    _arm("ln_tuning", "the norms", FAST),
    _arm("diff_fit", "biases, norms and factors", FAST),
    _arm("ia3", "factors of keys, values and feed-forward", FAST),
    _arm("adapter_bias", "shifts behind the feed-forward", FAST),
    _arm("bottleneck", "adapters behind the feed-forward", MIDDLE, placement="pfeiffer"),
    _arm("compacter", "adapters of Kronecker products", MIDDLE),
    _arm("lora", "low-rank changes of queries and values", MIDDLE, **ATTENTION),
    _arm("lora", "the same, with magnitudes apart", MIDDLE, "dora", use_dora=True, **ATTENTION),
    _arm("lora_plus", "LoRA, B 16 times as fast", SLOW, **ATTENTION),
    _arm("lora_fa", "LoRA with fixed A", MIDDLE, **ATTENTION),
    _arm("delta_lora", "LoRA, the weights moving along", MIDDLE, **ATTENTION),
    _arm("adalora", "low-rank changes of values with moving ranks", FAST, target_modules=["v_proj"]),
    _arm("vera", "scaled random projections", FAST, **ATTENTION),
    _arm("hra", "reflections", MIDDLE, **ATTENTION),
    _arm("prompt_tuning", "embeddings before the text", PROMPTS),
    _arm("prefix_tuning", "keys and values before those of every layer", PROMPTS),
)


def _changing_beats(arms: Mapping[str, Metrics]) -> float:
    changing = max(arms[name]["loss"] for name in ("lora", "bottleneck", "ia3"))
    return min(arms[name]["loss"] for name in ("bitfit", "ln_tuning")) - changing


CLAIMS = (
    Claim(
        "1",
        "By every method the loss on the new task falls by 20 % or more.",
        "the smallest fall of any method, less 0.20",
        lambda arms: min(one["fall"] for one in arms.values()) - 0.20,
        0.0,
        Count(3, 3),
    ),
    Claim(
        "2",
        "No method changes a weight that it should leave.",
        "minus the number of entries that changed and should not have, over all methods and learning rates",
        lambda arms: -sum(one["moved"] for one in arms.values()),
        0.0,
        Count(3, 3),
    ),
    Claim(
        "3",
        "LoRA, adapters and IA3 reach a lower loss than BitFit and the tuning of norms.",
        "the lower loss of BitFit and norms, minus the highest of LoRA, adapters and IA3, in nats per token",
        _changing_beats,
        0.0,
        Count(3, 3),
    ),
    Claim(
        "4",
        "No method reaches a lower loss than full fine-tuning by more than 0.01.",
        "the lowest loss of any other method, minus that of full fine-tuning, plus 0.01 nats per token",
        lambda arms: min(one["loss"] for name, one in arms.items() if name != "full") - arms["full"]["loss"] + TIED,
        0.0,
        Count(3, 3),
    ),
)

SYSTEM = System(
    12,
    "PEFT survey",
    "Parameter-Efficient Fine-Tuning for Foundation Models",
    "arXiv 2501.13787, 2025",
    "One registry of adaptation methods with true costs, comparable by name.",
    "adaptation",
    Account(
        published=(
            "Methods of five families (selective, additive, prompts, reparameterisations, hybrids) adapt a model by a "
            "small part of its weights; the survey reports no experiments of its own.",
            "As published elsewhere on T5-base, GLUE and SuperGLUE means: full fine-tuning 84.9 and 73.9, adapters "
            "84.5 and 75.7, BitFit 83.3 and 72.5, LoRA 85.3 and 76.5, prompt tuning 84.9 and 73.3.",
        ),
        faithful=(
            "Every method is taken from the registry by name; where it has a size, the budget of 1 % of the weights "
            "sets it by counting.",
            "Each is trained at three learning rates of its own kind; the rate is chosen on validation rows, and the "
            "loss is told on other rows.",
            "What a method should leave is compared to the bit after every training.",
        ),
        deviates=(
            "A Llama of two layers, width 64, that knows four synthetic skills takes the place of T5-base, and one new "
            "skill that of GLUE: no published number is tested at this size.",
            "Matrices are reparameterised in queries and values alone, as on all of them not even rank 1 stays within "
            "1 % of so small a base; AdaLoRA, which needs two ranks to choose from, in values alone. Methods without "
            "a size train what they train, 0.1 to 0.9 %; full fine-tuning and Child-Tuning F everything.",
            "AdamW at a constant rate, without weight decay, for all; LoRA-FA has its own.",
            "Three of the card's expectations are held as they stand; that of full fine-tuning, best or tied, takes "
            "0.01 nats per token for tied.",
        ),
        used="""
steps:
  joint:
    adapt: {method: lora, budget: 0.01}
sweep:
  steps.joint.adapt:
    lora: {method: lora, budget: 0.01}
    compacter: {method: compacter, budget: 0.01}
""",
        scales={
            "small": Scale(
                "Pretrains a decoder of about 89,000 parameters once per seed and teaches it a new skill by twenty "
                "methods, 200 steps at each of three learning rates, on one CPU core; a seed takes about five minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "before, loss: nats per token of answers to 400 prompts that no training saw on purpose; fall is "
                    "1 - loss / before.",
                    "accuracy: share of these whose whole answer is right.",
                    "numbers, share: what trains, and its share of the base's; rate: the learning rate chosen.",
                    "moved: entries that changed and should not have, the most of any rate.",
                    "milliseconds: process time per step.",
                ),
                seeds=3,
            ),
        },
    ),
)
