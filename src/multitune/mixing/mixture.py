"""The mixture: which example comes at which place of a run, as a pure function of (seed, place).

Every block of the stream holds the share of every task that the policy gives it, rounded so that nothing is ever more
than one example off, and shuffled inside the block; a task's rows come in a fresh order on every pass. Place i is
computed without the places before it, so resuming is a number, and how the stream is cut into batches or dealt to
processes cannot change it.

Letters: T tasks, N places, K blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multitune.mixing.policies import MixtureConfig, cumulative_shares
from multitune.mixing.shuffling import permuted, scramble, seed_of

_ROUNDING = 1e-6  # an ideal count this close to a whole number is that number


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What a run takes from one task.

    Attributes:
        task: its name.
        rows: rows it has.
        draws: examples drawn, repeats counted.
        unique: rows seen at least once.
        most_repeats: times the most seen row is seen.
        mean_repeats: mean times a seen row is seen; 0 when none is.
        share: part of all draws.
        token_share: part of all tokens.
    """

    task: str
    rows: int
    draws: int
    unique: int
    most_repeats: int
    mean_repeats: float
    share: float
    token_share: float


class Mixture:
    """A deterministic stream of examples of several tasks.

    Args:
        rows: rows per task, each at least 1; the order gives the tasks their index.
        config: the policy.
        seed: of the shuffles.
        total: examples in the whole run; annealed and sequential policies progress over it.
        block: places per block. From the run's start to the end of any block, each task is within one example of its
            exact share (so within two in any block, and exact where the share of a block is a whole number).

    Raises:
        MultituneError: a policy that does not fit the tasks, a task without rows.
    """

    def __init__(
        self, rows: Mapping[str, int], config: MixtureConfig, seed: int, total: int, block: int = 1024
    ) -> None:
        if total < 1 or block < 1:
            raise ValueError(f"total and block must be at least 1, not {total} and {block}")
        self.names = tuple(rows)
        self.rows_T = np.array(list(rows.values()), dtype=np.int64)
        self.total, self.block, self.seed = total, block, seed
        ends_K = np.append(np.arange(0, total, block), total)
        ideal_KT = total * cumulative_shares(config, self.rows_T, self.names, ends_K / total)
        self.taken_KT = apportion(ideal_KT, ends_K)
        # keyed by name, so that a task keeps its order when another task joins
        self._key_T = np.array([seed_of(seed, "task", name) for name in self.names], dtype=np.uint64)
        self._block_key = np.uint64(seed_of(seed, "block"))

    def __len__(self) -> int:
        """Examples in the whole run."""
        return self.total

    def draw(self, start: int, stop: int) -> np.ndarray:
        """The examples at places start..stop-1.

        Returns:
            int64 [stop - start, 3]: index of the task, index of the row in the task, and how many times that row was
            seen before.
        """
        if not 0 <= start <= stop <= self.total:
            raise ValueError(f"places {start}..{stop} are not within 0..{self.total}")
        first = start // self.block
        last = max(first + 1, -(-stop // self.block))
        task_N, ordinal_N = self._blocks(first, min(last, len(self.taken_KT) - 1))
        part = slice(start - first * self.block, stop - first * self.block)
        task_N, ordinal_N = task_N[part], ordinal_N[part]
        size_N = self.rows_T[task_N]
        repeat_N, position_N = np.divmod(ordinal_N, size_N)
        row_N = permuted(position_N, size_N, scramble(self._key_T[task_N], repeat_N))
        return np.stack([task_N, row_N, repeat_N], axis=1)

    def _blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Task, and number of earlier draws of that task, for every place of blocks first..last-1; int64 [N] each."""
        count_KT = np.diff(self.taken_KT[first : last + 1], axis=0)
        n_tasks = len(self.names)
        cell_N = np.repeat(np.arange(count_KT.size), count_KT.ravel())
        block_N, task_N = cell_N // n_tasks, cell_N % n_tasks
        # draws of the same task before an entry: first inside its block, then from the run's start
        ordinal_N = np.arange(len(cell_N)) - np.repeat(np.cumsum(count_KT) - count_KT.ravel(), count_KT.ravel())
        ordinal_N += self.taken_KT[first + block_N, task_N]
        # the shuffle moves the tasks; each task's ordinals then go out in the order of its places, pass after pass
        place_N = np.arange(len(cell_N)) + first * self.block
        task_N = task_N[np.lexsort((scramble(self._block_key, place_N), block_N))]
        shuffled_ordinal_N = np.empty_like(ordinal_N)
        shuffled_ordinal_N[np.lexsort((task_N, block_N))] = ordinal_N
        return task_N, shuffled_ordinal_N

    def plan(self, mean_tokens: Mapping[str, float] | None = None) -> list[TaskPlan]:
        """What the run takes from every task, from counts alone.

        Args:
            mean_tokens: mean tokens of an example, per task; None counts every example as one token.
        """
        draws_T = self.taken_KT[-1]
        tokens_T = draws_T * np.array([mean_tokens[name] if mean_tokens else 1.0 for name in self.names])
        plans = []
        for name, rows, draws, tokens in zip(self.names, self.rows_T.tolist(), draws_T.tolist(), tokens_T, strict=True):
            unique = min(draws, rows)
            plans.append(
                TaskPlan(
                    task=name,
                    rows=rows,
                    draws=draws,
                    unique=unique,
                    most_repeats=-(-draws // rows),
                    mean_repeats=draws / unique if unique else 0.0,
                    share=draws / self.total,
                    token_share=float(tokens / tokens_T.sum()),
                )
            )
        return plans


def apportion(ideal_KT: np.ndarray, ends_K: np.ndarray) -> np.ndarray:
    """Whole cumulative counts that never decrease, sum to the block's end, and are within one of the ideal.

    Every block must take up to floor(ideal) of each task and may take up to ceil(ideal); what is left of the block goes
    to the tasks whose next draw falls due first. Draw j of a task may be scheduled from the block in which the ideal
    passes j - 1 to the block in which it reaches j; the ideal itself, draw by draw, is a fractional schedule that meets
    all these windows, hence earliest-deadline-first meets them with whole draws (Tijdeman 1980, the chairman assignment
    problem; Steiner and Yeomans 1993).

    Args:
        ideal_KT: float64 [K + 1, T], not decreasing, the first row 0; row k sums to ``ends_K[k]``.
        ends_K: int64 [K + 1], the places before every block and after the last.

    Returns:
        int64 [K + 1, T], with floor(ideal) <= counts <= ceil(ideal).
    """
    floor_KT = np.floor(ideal_KT + _ROUNDING).astype(np.int64)
    ceil_KT = np.ceil(ideal_KT - _ROUNDING).astype(np.int64)
    n_ends, n_tasks = ideal_KT.shape
    # one sorted array for all tasks, each shifted beyond the one before it, finds all deadlines with one search
    shift_T = np.arange(n_tasks) * (int(ends_K[-1]) + 2)
    sorted_floors = (floor_KT + shift_T).T.ravel()
    taken_KT = np.zeros_like(floor_KT)
    for k in range(1, n_ends):
        must_T = np.maximum(floor_KT[k], taken_KT[k - 1])
        open_tasks = np.flatnonzero(must_T < ceil_KT[k])
        next_draw = must_T[open_tasks] + 1 + shift_T[open_tasks]
        deadline = np.searchsorted(sorted_floors, next_draw) - open_tasks * n_ends
        behind = must_T[open_tasks] - ideal_KT[k, open_tasks]
        due_first = open_tasks[np.lexsort((behind, deadline))]
        must_T[due_first[: ends_K[k] - must_T.sum()]] += 1
        taken_KT[k] = must_T
    return taken_KT
