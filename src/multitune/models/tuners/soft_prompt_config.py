"""Options of the soft prompts that peft does not have: DePT, EPT and MPT; with less of them, plain prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType
from peft.utils.constants import DUMMY_TARGET_MODULES

INITS = ("vocabulary", "text")
TASK_TYPES = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")


@dataclass
class SoftPromptConfig(PeftConfig):
    """What all of them have: s vectors before the text.

    Attributes:
        num_virtual_tokens: s.
        init: the vectors start as rows of the embedding: of tokens drawn at random (``vocabulary``), or of the tokens
            of ``init_text``, repeated or cut to s (``text``).
        init_text: for instance the task's instruction.
        tokenizer_name_or_path: reads ``init_text``; None: the base's own.
    """

    num_virtual_tokens: int = field(default=20)
    init: str = field(default="vocabulary")
    init_text: str | None = field(default=None)
    tokenizer_name_or_path: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target_modules = DUMMY_TARGET_MODULES  # peft asks every tuner for it; there is no layer to replace
        if self.init not in INITS:
            raise ValueError(f"init is one of {', '.join(INITS)}, not {self.init}")
        if self.init == "text" and not self.init_text:
            raise ValueError("init: text needs init_text")
        if self.task_type not in TASK_TYPES:
            raise ValueError(f"{self.task_type} is no task type whose answers can be told from those at a prompt")
        self._at_least(1, "num_virtual_tokens")

    def numbers(self, width: int) -> int:
        """Return how many numbers train on a base with embeddings of a width."""
        return self.num_virtual_tokens * width

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, not {getattr(self, name)}")


@dataclass
class DeptConfig(SoftPromptConfig):
    """Options of `DeptModel` (arXiv:2309.05173); with ``r: 0`` it is prompt tuning.

    Attributes:
        r: rank of what is added to the embeddings of the text, by position; s d + r (L + d) numbers train.
        alpha: what is added is scaled by alpha / sqrt(r).
        max_length: L, positions of the text to which something is added; those beyond it stay as they are.
    """

    num_virtual_tokens: int = field(default=60)
    r: int = field(default=30)
    alpha: float = field(default=8.0)
    max_length: int = field(default=256)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["DEPT"]
        self._at_least(0, "r")
        self._at_least(1, "max_length")

    def numbers(self, width: int) -> int:
        """Return how many numbers train on a base with embeddings of a width."""
        return super().numbers(width) + self.r * (self.max_length + width)


@dataclass
class EptConfig(DeptConfig):
    """Options of `EptModel` (arXiv:2405.11464); with neither fusion nor spaces it is DePT.

    Attributes:
        fusion: whether the prompt attends to what is added to the text (trains nothing more).
        n_spaces: N, projections of the prompt that are added to it, weighed by a learned gate; 0: none.
        space_rank: q, of every projection; N 2 d q + d N numbers train.
    """

    num_virtual_tokens: int = field(default=40)
    fusion: bool = field(default=True)
    n_spaces: int = field(default=4)
    space_rank: int = field(default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["EPT"]
        self._at_least(0, "n_spaces")
        self._at_least(1, "space_rank")

    def numbers(self, width: int) -> int:
        """Return how many numbers train on a base with embeddings of a width."""
        return super().numbers(width) + self.n_spaces * width * (2 * self.space_rank + 1)


@dataclass
class MptConfig(SoftPromptConfig):
    """Options of `MptModel` (arXiv:2303.02861): the prompt of a task is the shared one times factors of the task.

    Attributes:
        task_rank: k, of every task's factors; s d + T k (s + d) numbers train.
        tasks: names of the T tasks, in the order of their ids.
    """

    task_rank: int = field(default=1)
    tasks: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["MPT"]
        self._at_least(1, "task_rank")

    @property
    def n_tasks(self) -> int:
        """T, at least 1."""
        return max(1, len(self.tasks or ()))

    def numbers(self, width: int) -> int:
        """Return how many numbers train on a base with embeddings of a width."""
        return super().numbers(width) + self.n_tasks * self.task_rank * (self.num_virtual_tokens + width)
