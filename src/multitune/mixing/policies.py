"""Mixture policies: the share of every task, as a function of the tasks' sizes and of the run's progress.

Letters: T tasks, P points of progress, n rows per task, p share per task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from multitune.errors import MultituneError, nearest

if TYPE_CHECKING:  # NumPy is imported where it is used: the schema of a recipe needs the classes only
    import numpy as np


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Proportional(_Policy):
    """Every task by its number of rows: p ~ n."""

    policy: Literal["proportional"] = "proportional"


class Equal(_Policy):
    """Every task as often as any other: p = 1/T."""

    policy: Literal["equal"] = "equal"


class Temperature(_Policy):
    """Sizes flattened by a temperature: p ~ n^(1/temperature); 1 is proportional, a large one is nearly equal."""

    policy: Literal["temperature"] = "temperature"
    temperature: PositiveFloat = Field(2.0, description="1 is proportional, a large one is nearly equal")


class Capped(_Policy):
    """Proportional, with no task counted as larger than the cap: p ~ min(n, cap)."""

    policy: Literal["capped"] = "capped"
    cap: PositiveInt = Field(description="rows at which a task's size stops to count")


class Weights(_Policy):
    """Explicit weights, one for every task: p ~ weight; 0 leaves a task out."""

    policy: Literal["weights"] = "weights"
    weights: dict[str, NonNegativeFloat] = Field(min_length=1, description="weight of every task")


class Replay(_Policy):
    """New tasks, and a share of the rows from tasks of earlier steps, so that these are not forgotten.

    p = share n / sum of n over the earlier tasks, and (1 - share) n / sum of n over the others.
    """

    policy: Literal["replay"] = "replay"
    earlier: tuple[str, ...] = Field(min_length=1, description="tasks of earlier steps; the others are new")
    share: float = Field(0.1, gt=0, lt=1, description="of all rows, for the earlier tasks together")


class Group(_Policy):
    """Tasks that get a share together: a benchmark, or an auxiliary set."""

    tasks: tuple[str, ...] = Field(min_length=1, description="names, or patterns such as niv2_*")
    share: NonNegativeFloat | None = Field(None, description="against the other groups' shares, of what of_all leaves")
    of_all: float | None = Field(None, gt=0, lt=1, description="this part of all rows, whatever the other groups get")

    @model_validator(mode="after")
    def _one_kind(self) -> Group:
        if (self.share is None) == (self.of_all is None):
            raise ValueError("a group has either a share among the groups, or a part of_all rows")
        return self


class Grouped(_Policy):
    """Shares of benchmarks, and inside each its tasks by size up to a cap (OPT-IML, arXiv:2212.12017).

    p = s_g min(n, cap) / sum of min(n, cap) over the group's tasks; s_g is ``of_all``, or (1 - sum of all ``of_all``)
    share_g / sum of the shares.
    """

    policy: Literal["grouped"] = "grouped"
    groups: dict[str, Group] = Field(min_length=1, description="tasks and share of every group")
    cap: PositiveInt | None = Field(None, description="rows at which a task's size stops to count; none: never")

    def group_of(self, names: Sequence[str]) -> dict[str, str]:
        """Return every task's group; a name or a pattern may be in one group only.

        Raises:
            MultituneError: a group without tasks, a task in two groups or in none, parts of all rows that leave
                nothing, or nothing but zeros, for the others.
        """
        found: dict[str, str] = {}
        for group, one in self.groups.items():
            key = f"mixture.groups.{group}"
            for pattern in one.tasks:
                matching = [name for name in names if fnmatchcase(name, pattern)]
                if not matching:
                    raise MultituneError(
                        f"No task of this mixture is '{pattern}', and the group '{group}' asks for it."
                        f"{nearest(pattern, names)}",
                        f"{key}.tasks",
                        f"Name some of: {', '.join(names)}; or take it out.",
                    )
                for name in matching:
                    if found.setdefault(name, group) != group:
                        raise MultituneError(
                            f"Task '{name}' is in the groups '{found[name]}' and '{group}'.", key, "Leave it in one."
                        )
        if missing := [name for name in names if name not in found]:
            raise MultituneError(
                f"Task '{missing[0]}' is in no group.", "mixture.groups", "Put every task of the step into a group."
            )
        self._check_shares()
        return found

    def _check_shares(self) -> None:
        auxiliary = sum(one.of_all or 0.0 for one in self.groups.values())
        shares = [one.share for one in self.groups.values() if one.share is not None]
        if (shares and auxiliary >= 1) or (not shares and abs(auxiliary - 1) > 1e-9):
            raise MultituneError(
                f"The groups' parts of all rows sum to {auxiliary:g}, "
                + ("which leaves nothing for the others." if shares else "and there is no other group."),
                "mixture.groups",
                "Give the auxiliary groups less than 1 together, and the others a share.",
            )
        if shares and not any(shares):
            raise MultituneError("All shares are 0.", "mixture.groups", "Give one group a positive share.")


class Sequential(_Policy):
    """One task after the other; each lasts as long as its share of the rows."""

    policy: Literal["sequential"] = "sequential"
    order: tuple[str, ...] = Field((), description="every task once; empty: as the recipe lists them")


Steady = Annotated[
    Proportional | Equal | Temperature | Capped | Weights | Replay | Grouped, Field(discriminator="policy")
]


class Annealed(_Policy):
    """From one policy's shares to another's, linear in the run's progress."""

    policy: Literal["annealed"] = "annealed"
    start: Steady = Proportional()
    end: Steady = Equal()


MixtureConfig = Annotated[
    Proportional | Equal | Temperature | Capped | Weights | Replay | Grouped | Annealed | Sequential,
    Field(discriminator="policy"),
]


def check_names(config: MixtureConfig, names: Sequence[str]) -> None:
    """Refuse a policy that names a task that does not exist, or leaves one out; needs no data.

    Raises:
        MultituneError: an unknown task (with the nearest name), a task without weight or place, weights that sum to 0.
    """
    match config:
        case Weights():
            _check_listed(list(config.weights), names, "mixture.weights", "Give '{}' a weight; 0 leaves it out.")
            if not any(config.weights.values()):
                raise MultituneError("All weights are 0.", "mixture.weights", "Give one task a positive weight.")
        case Replay():
            new = [name for name in names if name not in config.earlier]
            _check_listed([*config.earlier, *new], names, "mixture.earlier", "")
            if not new:
                raise MultituneError("All tasks are earlier ones.", "mixture.earlier", "Leave a new task out of it.")
        case Grouped():
            config.group_of(names)
        case Sequential() if config.order:
            _check_listed(list(config.order), names, "mixture.order", "Give '{}' a place, or leave the order empty.")
        case Annealed():
            check_names(config.start, names)
            check_names(config.end, names)


def _check_listed(listed: Sequence[str], names: Sequence[str], key: str, mend_missing: str) -> None:
    for name in listed:
        if name not in names:
            what = f"There is no task '{name}' in this mixture.{nearest(name, names)}"
            raise MultituneError(what, f"{key}: {name}", f"Name one of: {', '.join(names)}.")
        if listed.count(name) > 1:
            raise MultituneError(f"Task '{name}' is listed twice.", key, "List every task once.")
    for name in names:
        if name not in listed:
            raise MultituneError(f"Task '{name}' is missing.", key, mend_missing.format(name))


def shares(config: MixtureConfig, rows: np.ndarray, names: Sequence[str], progress: np.ndarray) -> np.ndarray:
    """Share of every task at every point of progress.

    Args:
        config: the policy.
        rows: int [T], rows per task, each at least 1.
        names: T task names, in the order of ``rows``.
        progress: float [P] in 0..1.

    Returns:
        float64 [P, T]; every row sums to 1.

    Raises:
        MultituneError: see ``check_names``; a task without rows.
    """
    import numpy as np

    progress_P = np.asarray(progress, dtype=np.float64)
    _check_rows(config, rows, names)
    match config:
        case Annealed():
            start_T, end_T = _steady(config.start, rows, names), _steady(config.end, rows, names)
            return start_T + progress_P[:, None] * (end_T - start_T)
        case Sequential():
            begin_T, _ = _spans(config, rows, names)
            # the last task that has begun; at progress 1 that is still the last task
            running_P = np.searchsorted(np.sort(begin_T), progress_P, side="right") - 1
            return np.eye(len(names))[np.argsort(begin_T)[running_P]]
        case _:
            return np.tile(_steady(config, rows, names), (len(progress_P), 1))


def cumulative_shares(
    config: MixtureConfig, rows: np.ndarray, names: Sequence[str], progress: np.ndarray
) -> np.ndarray:
    """Integral of the shares from 0 to every point of progress: the part of the whole run spent on every task by then.

    Same arguments as ``shares``; float64 [P, T], row p sums to progress p. In closed form, so that counts derived from
    it are exact over a whole run.
    """
    import numpy as np

    progress_P1 = np.asarray(progress, dtype=np.float64)[:, None]
    _check_rows(config, rows, names)
    match config:
        case Annealed():
            start_T, end_T = _steady(config.start, rows, names), _steady(config.end, rows, names)
            return progress_P1 * start_T + progress_P1**2 / 2 * (end_T - start_T)
        case Sequential():
            begin_T, width_T = _spans(config, rows, names)
            return np.clip(progress_P1 - begin_T, 0, width_T)
        case _:
            return progress_P1 * _steady(config, rows, names)


def _check_rows(config: MixtureConfig, rows: np.ndarray, names: Sequence[str]) -> None:
    check_names(config, names)
    for name, n in zip(names, rows, strict=True):
        if n < 1:
            raise MultituneError(
                f"Task '{name}' has no rows to train on.", f"tasks.{name}", "Give it rows, or take it out of the step."
            )


def _steady(config: Steady, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Shares [T] of a policy that does not change over the run."""
    import numpy as np

    n_T = np.asarray(rows, dtype=np.float64)
    match config:
        case Proportional():
            size_T = n_T
        case Equal():
            size_T = np.ones_like(n_T)
        case Temperature():
            size_T = (n_T / n_T.max()) ** (1 / config.temperature)
        case Capped():
            size_T = np.minimum(n_T, config.cap)
        case Replay():
            earlier_T = np.isin(names, config.earlier)
            total_T = np.where(earlier_T, n_T[earlier_T].sum(), n_T[~earlier_T].sum())
            size_T = np.where(earlier_T, config.share, 1 - config.share) * n_T / total_T
        case Grouped():
            size_T = _grouped(config, n_T, names)
        case Weights():
            size_T = np.array([config.weights[name] for name in names], dtype=np.float64)
    return size_T / size_T.sum()


def _grouped(config: Grouped, n_T: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Shares [T]: each group's share, divided among its tasks by their sizes up to the cap."""
    import numpy as np

    group_of = config.group_of(names)
    of_all = {name: group.of_all for name, group in config.groups.items() if group.of_all is not None}
    share = {name: group.share for name, group in config.groups.items() if group.share is not None}
    rest = 1.0 - sum(of_all.values())
    whole = of_all | {name: rest * one / sum(share.values()) for name, one in share.items()}
    size_T = np.minimum(n_T, config.cap or np.inf)
    group_T = np.array([group_of[name] for name in names])
    total = {group: size_T[group_T == group].sum() for group in whole}
    return np.array([whole[g] * size / total[g] for g, size in zip(group_T, size_T, strict=True)])


def _spans(config: Sequential, rows: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Begin and width [T] of every task's part of the run, in progress."""
    import numpy as np

    order_T = np.array([names.index(name) for name in config.order or names])
    width_T = np.asarray(rows, dtype=np.float64) / np.sum(rows)
    begin_T = np.empty_like(width_T)
    begin_T[order_T] = np.cumsum(width_T[order_T]) - width_T[order_T]
    return begin_T, width_T


class TaskShare(NamedTuple):
    """What a policy gives one task.

    Attributes:
        task: its name.
        rows: rows it has.
        examples: share of the examples over the whole run.
        tokens: share of the tokens over the whole run.
        examples_at_start: share of the examples when the run begins.
        examples_at_end: share of the examples when it ends.
    """

    task: str
    rows: int
    examples: float
    tokens: float
    examples_at_start: float
    examples_at_end: float


def share_table(config: MixtureConfig, rows: Mapping[str, int], mean_tokens: Mapping[str, float]) -> list[TaskShare]:
    """The share every task will get, in examples and in tokens, in the order of ``rows``.

    Args:
        config: the policy.
        rows: rows per task.
        mean_tokens: mean tokens of an example, per task.
    """
    import numpy as np

    names = list(rows)
    rows_T = np.array([rows[name] for name in names])
    whole_T = cumulative_shares(config, rows_T, names, np.ones(1))[0]
    start_T, end_T = shares(config, rows_T, names, np.array([0.0, 1.0]))
    tokens_T = whole_T * np.array([mean_tokens[name] for name in names])
    tokens_T = tokens_T / tokens_T.sum()
    columns = (rows_T.tolist(), whole_T.tolist(), tokens_T.tolist(), start_T.tolist(), end_T.tolist())
    return [TaskShare(*values) for values in zip(names, *columns, strict=True)]
