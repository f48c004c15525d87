"""Seeded shuffles with random access: element i of a permutation without the elements before it.

The bits come from a hash and not from a generator, so they are the same under every version of NumPy and can be asked
for in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 10  # each stirs both halves; with 6, the 720 orders of six elements are measurably uneven
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def seed_of(*parts: int | str) -> int:
    """A 64-bit seed from numbers and words; the same on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def scramble(key: np.ndarray | np.uint64, value: np.ndarray) -> np.ndarray:
    """Hash of (key, value), element by element: the output function of SplitMix64 (Steele, Lea and Flood 2014).

    Args:
        key: uint64, broadcast against ``value``.
        value: integers, not negative.

    Returns:
        uint64, uniform over all 64 bits.
    """
    z = (value.astype(np.uint64) + np.uint64(1)) * _GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def permuted(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of ``0..size-1`` sends every position.

    A Feistel network on Z_a x Z_b with a*b >= size, both near its root; a result outside the range is sent through the
    network again until it is inside (cycle walking, Black and Rogaway 2002), rare as a*b < size + sqrt(size) + 1.
    No permutation is stored, and every element may belong to another one.

    Args:
        position: int64 [N], 0 <= position < size.
        size: int64 [N], at least 1.
        key: uint64 [N], which permutation.

    Returns:
        int64 [N]; for a fixed (size, key) a bijection.
    """
    size_N = size.astype(np.uint64)
    a_N = np.ceil(np.sqrt(size)).astype(np.uint64)
    b_N = (size_N + a_N - np.uint64(1)) // a_N
    result_N = position.astype(np.uint64)
    outside = np.arange(len(position))
    while len(outside):
        result_N[outside] = _feistel(result_N[outside], a_N[outside], b_N[outside], key[outside])
        outside = outside[result_N[outside] >= size_N[outside]]
    return result_N.astype(np.int64)


def _feistel(x_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    left_N, right_N = x_N // b_N, x_N % b_N
    for turn in range(_ROUNDS):
        left_N = (left_N + scramble(key_N + np.uint64(2 * turn), right_N) % a_N) % a_N
        right_N = (right_N + scramble(key_N + np.uint64(2 * turn + 1), left_N) % b_N) % b_N
    return left_N * b_N + right_N
