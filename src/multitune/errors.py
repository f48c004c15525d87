"""The one error that users see: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MultituneError(Exception):
    """A user's mistake or a refused situation, told in three sentences.

    The command line prints it without a traceback and exits with code 2.

    Args:
        what: what is wrong, one sentence, with the offending value.
        where: file, line, key, task or step it concerns.
        mend: what to do about it, one sentence.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 2

    def __init__(self, what: str, where: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  where: {self.where}\n  mend:  {self.mend}"


class MultituneErrors(MultituneError):
    """Several mistakes found in one pass, reported together.

    Args:
        errors: at least one error; the first gives the summary.
    """

    def __init__(self, errors: Iterable[MultituneError]) -> None:
        self.errors = list(errors)
        first = self.errors[0]
        super().__init__(first.what, first.where, first.mend)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed word, or "" when none is close."""
    matches = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""
