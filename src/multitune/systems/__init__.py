"""The gallery: every published system that the house is built for, and those of them that stand.

A system that stands is one file with its facts and its reproduction; the others are to come. Nothing heavy is loaded to
list them: a reproduction imports what it needs when it runs.
"""

from __future__ import annotations

from multitune.errors import MultituneError, nearest
from multitune.systems import (
    adaptation_registry,
    atlas,
    breadcrumbs,
    cocktail,
    ept,
    gpt3,
    hft,
    lines,
    logit_fusion,
    mftcoder,
    mhr,
    multitab,
    opt_iml,
    pcp,
    peft_for_code,
    promot,
    quick_learners,
    rmtgb,
    xmtf,
)
from multitune.systems.system import System

_GALLERY = (
    System(
        1,
        "SSFT",
        "Improving Large Language Model Fine-tuning for Solving Math Problems",
        "arXiv 2310.10047, 2023",
        "Learning to judge solutions, and re-ranking clusters of answers, raises accuracy in mathematics.",
        "decoding",
    ),
    promot.SYSTEM,
    rmtgb.SYSTEM,
    System(
        4,
        "MLLM-MSR",
        "Harnessing Multimodal Large Language Models for Multimodal Sequential Recommendation",
        "arXiv 2408.09698, AAAI 2025",
        "Summaries of images and of changing preferences let a tuned language model recommend what comes next.",
        "recipes",
    ),
    System(
        5,
        "GFlowVLM",
        "Enhancing Multi-step Reasoning in Vision-Language Models with Generative Flow Networks",
        "arXiv 2503.06514, CVPR 2025",
        "Flow objectives let an agent sample all good plans in proportion to their reward, not just one.",
        "objectives",
    ),
    System(
        6,
        "AnyTaskTune",
        "Advanced Domain-Specific Solutions through Task-Fine-Tuning",
        "arXiv 2407.07094, 2024",
        "Small models tuned on a workflow's own sub-tasks beat larger general ones at these sub-tasks.",
        "recipes",
    ),
    cocktail.SYSTEM,
    logit_fusion.SYSTEM,
    System(
        9,
        "MVLPT",
        "Multitask Vision-Language Prompt Tuning",
        "arXiv 2211.11720, WACV 2024",
        "A prompt learned on many source tasks is a better start for few-shot target tasks than noise.",
        "adaptation",
    ),
    System(
        10,
        "MULTI-LANE",
        "Less Is More: Summarizing Patch Tokens for Efficient Multi-Label Class-Incremental Learning",
        "CoLLAs 2024",
        "Parallel lanes over a few summary tokens learn new classes without forgetting, at nearly flat cost.",
        "training",
    ),
    System(
        11,
        "Conjugate prompting",
        "Understanding Catastrophic Forgetting in Language Models via Implicit Inference",
        "arXiv 2309.10105, ICLR 2024",
        "What fine-tuning seems to have erased is mis-inferred tasks; a transformed prompt brings it back.",
        "scoring",
    ),
    adaptation_registry.SYSTEM,
    System(
        13,
        "Polyhistor",
        "Polyhistor: Parameter-Efficient Multi-Task Adaptation for Dense Vision Tasks",
        "arXiv 2210.03265, NeurIPS 2022",
        "Factored hypernetworks give dense vision tasks their adapters with a tenth of the parameters.",
        "adaptation",
    ),
    mhr.SYSTEM,
    xmtf.SYSTEM,
    System(
        16,
        "MLLM-CTBench",
        "A Benchmark for Continual Instruction Tuning of Multimodal LLMs with Reasoning Diagnosis",
        "arXiv 2508.08275, 2025",
        "A sequence of tasks shows what each learner forgets, in its answers and in its reasoning.",
        "training",
    ),
    System(
        17,
        "GOT-D",
        "Get More for Less: Principled Data Selection for Warming Up Fine-Tuning in LLMs",
        "arXiv 2405.02774, ICLR 2024",
        "Gradients of an optimal-transport distance pick the open data that is worth a warm-up.",
        "mixing",
    ),
    System(
        18,
        "FM3",
        "Few-shot Multimodal Multitask Multilingual Learning",
        "arXiv 2303.12489, 2023",
        "Contrastive pairs and generated adapters teach one model many tasks from a handful of labels.",
        "objectives",
    ),
    pcp.SYSTEM,
    mftcoder.SYSTEM,
    hft.SYSTEM,
    ept.SYSTEM,
    System(
        23,
        "Co-citation MoE",
        "Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings",
        "arXiv 2401.15713, Scientific Reports 2025",
        "One encoder with an expert per field is as good in every field as a specialist.",
        "models",
    ),
    lines.SYSTEM,
    atlas.SYSTEM,
    gpt3.SYSTEM,
    opt_iml.SYSTEM,
    multitab.SYSTEM,
    breadcrumbs.SYSTEM,
    quick_learners.SYSTEM,
    System(
        31,
        "ECMT",
        "Efficient Controllable Multi-Task Architectures",
        "arXiv 2308.11744, ICCV 2023",
        "One network, slimmable in encoder and decoders, follows changing budgets and priorities untrained.",
        "models",
    ),
    System(
        32,
        "Behaviour shift",
        "From Language Modeling to Instruction Following: Understanding the Behavior Shift after Instruction Tuning",
        "arXiv 2310.00492, NAACL 2024",
        "Attribution, heads and feed-forward concepts show what instruction tuning has changed in a model.",
        "scoring",
    ),
    System(
        33,
        "JiuZhang 2.0",
        "A Unified Chinese Pre-trained Language Model for Multi-task Mathematical Problem Solving",
        "arXiv 2306.11027, KDD 2023",
        "Experts behind task prompts let one moderate model do a dozen mathematical tasks without interference.",
        "models",
    ),
    peft_for_code.SYSTEM,
    System(
        35,
        "Long-context RAG",
        "Long-Context LLMs Meet RAG: Overcoming Challenges for Long Inputs in RAG",
        "arXiv 2410.05983, ICLR 2025",
        "Reordered passages and retrieval-aware tuning keep answers improving as passages are added.",
        "decoding",
    ),
    System(
        36,
        "Recformer",
        "Text Is All You Need: Learning Language Representations for Sequential Recommendation",
        "arXiv 2305.13731, KDD 2023",
        "Items read as text, not as ids, can be recommended before anybody has seen them.",
        "models",
    ),
    System(
        37,
        "PTR",
        "Think Thrice Before You Act: Progressive Thought Refinement in Large Language Models",
        "arXiv 2410.13413, ICLR 2025",
        "Tuning on strong answers after masked weak thoughts makes a second and third answer better.",
        "decoding",
    ),
    System(
        38,
        "AgentTTS",
        "AgentTTS: Large Language Model Agent for Test-time Compute-optimal Scaling in Complex Tasks",
        "arXiv 2508.00890, NeurIPS 2025",
        "A guided search finds the best models and sample counts of a pipeline under one budget in tens of trials.",
        "decoding",
    ),
)

SYSTEMS: dict[int, System] = {system.number: system for system in _GALLERY}


def find_system(word: str) -> System:
    """Return the system of a number ("20", "20-mftcoder") or a name ("mftcoder").

    Raises:
        MultituneError: there is none; the nearest is named.
    """
    names = {system.name.lower(): system for system in _GALLERY}
    slugs = {system.slug: system for system in _GALLERY}
    wanted = word.strip().lower()
    if wanted.isdecimal() and int(wanted) in SYSTEMS:
        return SYSTEMS[int(wanted)]
    if found := names.get(wanted) or slugs.get(wanted):
        return found
    if wanted.isdecimal():
        closest = min(SYSTEMS, key=lambda number: abs(number - int(wanted)))
        hint = f" The nearest is {closest} ({SYSTEMS[closest].name})."
    else:
        hint = nearest(wanted, [*names, *slugs])
    raise MultituneError(
        f"There is no system '{word}' in the gallery.{hint}",
        f"systems {word}",
        f"Give a number from {min(SYSTEMS)} to {max(SYSTEMS)} or a name; `multitune systems` lists them.",
    )
