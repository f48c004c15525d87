"""System 25, aTLAS: one learned coefficient per task vector and block composes what several fine-tunings know.

The small reproduction composes the task vectors of a test bed (``task_vector_testbed``); ``atlas_runs`` holds its arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Compose the vectors of the seed's test bed as one arm says, and measure test accuracy.

    Returns:
        ``accuracy/<task>`` and ``accuracy/mean``, or ``few-shot/...`` for the arms that adapt to each task from the
        vectors of the others, or ``test-time/...`` where they have no labels; ``negation/target`` and
        ``negation/control``; ``disentanglement/error`` of arms that compose all vectors.
    """
    from multitune.systems.atlas_runs import measure

    return measure(settings, seed)


def _arm(name: str, told: str, do: str, **settings: Any) -> Arm:
    return Arm(name, told, {"do": do, "targets": 5, "tuning_steps": 300, **settings})


def _learned(name: str, told: str, by: str, select: str) -> Arm:
    return _arm(name, told, "learned", by=by, select=select, steps=150)


def _few(name: str, told: str, select: str) -> Arm:
    return _arm(name, told, "few-shot", select=select, shots=16)


ARMS = (
    _arm("zero-shot", "the pretrained encoder", "zero-shot"),
    _arm("own", "each task by its own fine-tuned encoder: five models", "own"),
    _arm("scalar", "one coefficient for all vectors, the best of 31 on the test rows", "scalar"),
    _learned("isotropic", "one learned coefficient per vector", "all", "all"),
    _learned("atlas", "one learned coefficient per vector and tensor", "tensor", "all"),
    _learned("one-blockwise", "of one vector per tensor, chosen by gradient", "tensor", "blockwise"),
    _learned("one-whole", "of one vector, chosen by gradient", "tensor", "whole"),
    _learned("one-random", "of one vector, mean over all choices", "tensor", "random"),
    _arm("search", "one coefficient per vector by CMA-ES, 150 evaluations", "search", evaluations=150),
    _arm("adamerging", "AdaMerging per tensor, on the same rows without their labels", "adamerging", steps=500),
    _arm("full", "all weights tuned on the same rows", "full"),
    _few("few-all", "each task from four vectors of other tasks, 16 rows per class", "all"),
    _few("few-blockwise", "the same, of one vector per tensor, chosen by gradient", "blockwise"),
    _few("few-whole", "the same, of one vector, chosen by gradient", "whole"),
    _few("few-random", "the same, of one vector, mean over all choices", "random"),
    _arm("test-entropy", "each task from four vectors and unlabelled test rows, SAR", "test-time", objective="entropy"),
    _arm("test-simclr", "the same by SimCLR", "test-time", objective="simclr"),
    _arm("test-ufm", "the same by unsupervised FixMatch, exponent 0.5", "test-time", objective="ufm", exponent=0.5),
    _arm("test-ufm-sharp", "the same, exponent 2", "test-time", objective="ufm", exponent=2.0),
    _arm("negation-scalar", "each task unlearned by one searched coefficient of its vector", "negation", by="all"),
    _arm("negation-atlas", "each task unlearned by a learned coefficient per tensor", "negation", by="tensor"),
)


def _more_accurate(arms: Mapping[str, Metrics], method: str, baseline: str, group: str = "accuracy") -> float:
    return arms[method][f"{group}/mean"] - arms[baseline][f"{group}/mean"]


CLAIMS = (
    Claim(
        "1",
        "A coefficient per vector and tensor is more accurate by 0.03 or more than one coefficient per vector, learned "
        "in the same way on the same rows.",
        "mean test accuracy over the tasks, atlas minus isotropic",
        lambda arms: _more_accurate(arms, "atlas", "isotropic"),
        0.03,
        Count(3, 3),
    ),
    Claim(
        "2",
        "It is more accurate by 0.03 or more than the best single coefficient, though that one is chosen on the test "
        "rows.",
        "mean test accuracy over the tasks, atlas minus scalar",
        lambda arms: _more_accurate(arms, "atlas", "scalar"),
        0.03,
        Count(3, 3),
    ),
    Claim(
        "3a",
        "When a new task is learned from 16 rows per class and one vector of another task, choosing the vector per "
        "tensor by the gradient is at least as accurate as taking a random one.",
        "mean test accuracy over the tasks, few-blockwise minus few-random",
        lambda arms: _more_accurate(arms, "few-blockwise", "few-random", "few-shot"),
        0.0,
        Count(3, 3),
    ),
    Claim(
        "3b",
        "When one model is composed for all tasks with a budget of one vector, choosing it per tensor by the gradient "
        "is at least as accurate as taking a random one.",
        "mean test accuracy over the tasks, one-blockwise minus one-random",
        lambda arms: _more_accurate(arms, "one-blockwise", "one-random"),
        0.0,
        Count(3, 3),
    ),
)

SYSTEM = System(
    25,
    "aTLAS",
    "Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",
    "arXiv 2407.02880, NeurIPS 2024",
    "One learned coefficient per task vector and block composes what several models know.",
    "weights",
    Account(
        published=(
            "With one learned coefficient per task vector and parameter block, one CLIP composed of eight fine-tuned "
            "ones keeps 94 % of their accuracy, where one searched or learned coefficient per vector keeps 78 %.",
            "Learned from 1 to 16 labelled rows per class, or from unlabelled rows alone, coefficients of other tasks' "
            "vectors adapt a model to a new task with a few thousand numbers and no cost at inference.",
            "Of a budget of one vector, choosing per block by the gradient is worth 3.6 points over a random vector.",
        ),
        faithful=(
            "Every tensor is a block; coefficients start at 0, the pretrained model; AdamW with weight decay 0.1 and "
            "gradients clipped to a norm of 1 moves nothing but them; heads are frozen.",
            "Addition learns from the sum of the tasks' cross-entropies, every step with an equal share of 128 rows "
            "per task, and keeps the epoch with the best mean accuracy relative to the fine-tuned models, the start "
            "among the epochs.",
            "A new task never sees its own vector. Few-shot learning takes the published settings: 16 rows per class, "
            "10 epochs of at least 10 batches, learning rate 0.1 falling along a cosine.",
            "Blockwise selection takes for every tensor the vector with the largest gradient at the pretrained model.",
        ),
        deviates=(
            "A residual network of 40 tensors on 24 inputs takes the place of CLIP: it is pretrained on 12 auxiliary "
            "tasks that read one random feature map, and tuned to 5 new tasks of 6 classes, each around an input mean "
            "of its own, under frozen prototypes of 3 rows per class. The map's gain and the spread of the means were "
            "set once so that zero-shot and fine-tuned accuracy are about a third and about three quarters, before any "
            "coefficient was learned on it.",
            "Addition learns at 2e-2 for 150 steps from 150 rows per task, as the network is small.",
            "In few-shot learning the epoch is chosen on the labelled rows that the 16 per class leave over: the "
            "authors' code chooses on the test set.",
            "A random vector is not drawn but averaged over all that could be.",
            "Unlabelled views are the inputs with noise. Negation and test-time adaptation are shown, and no claim is "
            "made of them; scaling with partitions, LoRA vectors and the hybrids with other few-shot learners are "
            "tested as functions, not measured here.",
        ),
        found=(
            "Coefficients per vector and tensor are ahead of both baselines in every seed. The margin that claims 1 "
            "and 2 ask for is met on average and in two seeds; the rule asks for all three.",
            "One model for all tasks is better composed of one vector per tensor, chosen by the gradient, than of one "
            "whole vector, however that is chosen. In few-shot learning a single vector of another task is worth "
            "hardly more than none on this test bed, and the choice decides nothing; four vectors help in every seed.",
            "Tuning all weights on the same rows is better than any composition of the vectors, in every seed: where "
            "labelled rows of all tasks are at hand and weights may be trained, it is the baseline that wins here.",
            "One coefficient per vector is found by a search that sees nothing but accuracies about as well as by "
            "gradients. Without any label, AdaMerging comes about halfway from the pretrained "
            "encoder to the best single coefficient.",
            "Test-time adaptation, at the settings of few-shot learning, makes this encoder worse in every seed and by "
            "every objective: it labels a third of the rows right to begin with, and learns from its own mistakes. "
            "Entropy alone ends at chance; flattened pseudo-labels do least harm.",
            "One searched coefficient unlearns a task further than learned ones at the published rate, whose steps end "
            "long before the control is used up; its control loses more.",
            "The seconds are those of a machine that had other work to do; the processor time is the reproduction's.",
        ),
        used="""
from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import SETTINGS
from multitune.weights.learned.learning import learn_coefficients
from multitune.weights.learned.tasks import labelled_task

task = labelled_task("reviews", rows, logits, least_batches=10)
composition = composed(model, vectors, by="tensor")
learned = learn_coefficients(model, composition, [task], SETTINGS["few-shot"], evaluate=accuracy)
learned.fold_into(model)
""",
        used_in="python",
        scales={
            "small": Scale(
                "Pretrains a residual network of some thirty thousand parameters, tunes it to five tasks and composes "
                "them once per arm and seed, on one CPU core; a seed takes about a minute of processor time.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "accuracy is the share of 1000 test rows per task that the one composed model labels right.",
                    "few-shot is the same for a model of its own per task, composed of the other tasks' vectors.",
                    "test-time is the same again, adapted to the test rows themselves without their labels.",
                    "negation is the accuracy on the task that is unlearned (target, lower is better) and on the four "
                    "others (control), under their frozen heads, mean over the five turns.",
                    "disentanglement is the share of a task's test rows whose label changes when another task's "
                    "vector, with its coefficients, is added to its own; mean over all pairs.",
                ),
                seeds=3,
            ),
        },
    ),
)
