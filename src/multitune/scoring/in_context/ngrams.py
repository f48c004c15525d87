"""Words and n-grams of texts as 64-bit hashes, computed for a million letters at once.

A word of bytes b_0..b_(l-1) hashes to mix(sum_i (b_i + 1) p^i), an n-gram of words h_0..h_(n-1) to
mix(sum_i h_i q^i), both modulo 2^64. Sums over any stretch are differences of one running sum, divided by the power at
which the stretch begins: p and q are odd, so that division modulo 2^64 is a product. Who finds a hash compares strings.

Shape legend: ``S`` bytes, ``W`` words, ``G`` n-grams.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache

import numpy as np

P, Q = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
"""Odd, with about as many ones as zeros among their bits."""

BREAK = b"\0"
"""A word that no text has: no n-gram runs across it."""

_BLANKS = bytes.maketrans(b"\t\n\v\f\r", b"     ")
_DELETED = string.punctuation.encode() + BREAK


def cleaned(text: str) -> bytes:
    """Return a text in lower case without punctuation, in UTF-8, its words parted by blanks."""
    text = text.lower()
    if not text.isascii():
        text = re.sub(r"\s", " ", _signs().sub("", text))
    return text.encode("utf-8", "ignore").translate(_BLANKS, _DELETED)


def word_hashes(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hash uint64 [W], start and end int64 [W] of every word of a cleaned text."""
    byte_S = np.frombuffer(text, dtype=np.uint8)
    is_blank = np.ones(len(byte_S) + 2, dtype=bool)
    is_blank[1:-1] = byte_S == ord(" ")
    edges = np.flatnonzero(is_blank[1:] != is_blank[:-1])
    start_W, end_W = edges[::2], edges[1::2]
    power_S, inverse_S = _powers(P, len(byte_S))
    sum_S = np.zeros(len(byte_S) + 1, dtype=np.uint64)
    np.cumsum((byte_S.astype(np.uint64) + np.uint64(1)) * power_S, out=sum_S[1:])
    return _mixed((sum_S[end_W] - sum_S[start_W]) * inverse_S[start_W]), start_W, end_W


def ngram_hashes(hash_W: np.ndarray, n: int) -> np.ndarray:
    """Return the hashes of all n-grams of words in their order, uint64 [G], G = max(0, W - n + 1)."""
    G = max(0, len(hash_W) - n + 1)
    power_W, inverse_W = _powers(Q, len(hash_W))
    sum_W = np.zeros(len(hash_W) + 1, dtype=np.uint64)
    np.cumsum(hash_W * power_W, out=sum_W[1:])
    return _mixed((sum_W[n : n + G] - sum_W[:G]) * inverse_W[:G])


def _mixed(value: np.ndarray) -> np.ndarray:
    """Return numbers whose every bit depends on all bits of the given ones (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return base^0..base^(count - 1) and base^-0..base^-(count - 1) modulo 2^64."""
    power, inverse = _all_powers(base, 1 << max(10, (count - 1).bit_length()))
    return power[:count], inverse[:count]


@lru_cache(maxsize=8)
def _all_powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    def powers(factor: int) -> np.ndarray:
        factors = np.full(count, factor, dtype=np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(base), powers(pow(base, -1, 1 << 64))


@lru_cache(maxsize=1)
def _signs() -> re.Pattern[str]:
    """Punctuation beyond ASCII: the quotation marks, dashes and dots of all scripts."""
    signs = (chr(code) for code in range(128, 0x10000) if unicodedata.category(chr(code)).startswith("P"))
    return re.compile(f"[{re.escape(''.join(signs))}]")
