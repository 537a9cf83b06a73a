"""Seeded permutations of range(n), computed per position, without storing n numbers.

Each is a Feistel network over a grid slightly larger than the range, applied again while the result is outside the
range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The round function is the finaliser of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Integer arithmetic gives the same result on every machine. The
permutations must not change, because conversions and training runs resume with them: `tests/test_permutations.py`.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from walloc_data.errors import FormatError

__all__ = ["derive_key", "mix", "permute", "permute_source"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def mix(x: Words) -> Words:
    """Hash 64-bit integers with the finaliser of SplitMix64.

    Args:
        x: uint64 of any shape.

    Returns:
        uint64 of the same shape; distinct for distinct inputs.

    Example:
        >>> import numpy as np
        >>> from walloc_data.permutations import mix
        >>> mix(np.array([0, 1], np.uint64)).tolist()
        [0, 6238072747940578789]
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*numbers: int) -> int:
    """Return a 64-bit hash of a tuple of integers.

    Example:
        >>> from walloc_data.permutations import derive_key
        >>> derive_key(1, 0) == derive_key(0, 1)
        False
    """
    key = len(numbers)
    for number in numbers:
        word = np.array([(key * _GOLDEN + number + 1) & _WORD], dtype=np.uint64)
        key = int(mix(word)[0])
    return key


def permute(positions: Ints, *, size: Ints | int, key: Words | int) -> Ints:
    """Return the image of positions under the permutation of range(size) given by `key`. Used for orders of epochs.

    Args:
        positions: (n,) int64 in [0, size).
        size: length of the range, a number or (n,); at most 2^52, up to where the float64 square root is exact.
        key: key of the permutation, a number or (n,).

    Returns:
        (n,) int64 in [0, size): for one size and key, a permutation of range(size).

    Example:
        >>> import numpy as np
        >>> from walloc_data.permutations import derive_key, permute
        >>> sorted(permute(np.arange(5), size=5, key=derive_key(0, 1)).tolist())
        [0, 1, 2, 3, 4]
    """
    sizes = np.atleast_1d(np.asarray(size, dtype=np.uint64))
    a = np.maximum(np.ceil(np.sqrt(sizes.astype(np.float64))), 1).astype(np.uint64)
    grid = (a, (sizes + a - np.uint64(1)) // a, np.atleast_1d(np.asarray(key, dtype=np.uint64)))

    def cross(x: Words, which: npt.NDArray[np.bool_] | None) -> Words:
        return _cross(x, *(v if which is None or len(v) == 1 else v[which] for v in grid))

    return _walk(positions.astype(np.uint64), sizes=sizes, network=cross)


def permute_source(positions: npt.ArrayLike, *, num_items: int, seed: int) -> Ints:
    """Return the image of positions under the permutation of range(num_items) given by `seed`. Used for conversions.

    Args:
        positions: integers in [0, num_items), of any shape.
        num_items: length of the range, at most 2^62.
        seed: any integer.

    Returns:
        int64 in [0, num_items), the shape of `positions`; distinct for distinct positions.

    Raises:
        FormatError: a position is outside the range.

    Example:
        >>> from walloc_data.permutations import permute_source
        >>> permute_source(range(8), num_items=8, seed=0).tolist()
        [2, 5, 6, 1, 0, 4, 3, 7]
    """
    values = np.array(positions, dtype=np.int64)
    if values.size and (int(values.min()) < 0 or int(values.max()) >= num_items):
        raise FormatError(f"positions must be in [0, {num_items})")
    half_bits = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))
    keys = [
        np.uint64(int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "little"))
        for number in range(_ROUNDS)
    ]

    def cross(x: Words, which: npt.NDArray[np.bool_] | None) -> Words:
        del which
        return _cross_square(x, half_bits=half_bits, keys=keys)

    sizes = np.array([num_items], dtype=np.uint64)
    return _walk(values.ravel().astype(np.uint64), sizes=sizes, network=cross).reshape(values.shape)


def _walk(x: Words, *, sizes: Words, network: Callable[[Words, npt.NDArray[np.bool_] | None], Words]) -> Ints:
    """Apply a network to (n,) positions, and again to those that are outside their range."""
    landed = network(x, None)
    while (outside := landed >= sizes).any():
        landed[outside] = network(landed[outside], outside)
    return landed.astype(np.int64)


def _cross(x: Words, a: Words, b: Words, key: Words) -> Words:
    """Apply a Feistel network of modular additions: a permutation of range(a * b)."""
    left, right = x % a, x // a
    half = np.uint64(32)
    for number in range(_ROUNDS):
        round_key = mix(key + np.uint64((number * _GOLDEN) & _WORD))
        source, limit = (right, a) if number % 2 == 0 else (left, b)
        step = ((mix(source ^ round_key) >> half) * limit) >> half  # uniform in [0, limit)
        moved = (left if number % 2 == 0 else right) + step
        moved -= np.where(moved >= limit, limit, np.uint64(0))
        if number % 2 == 0:
            left = moved
        else:
            right = moved
    return left + a * right


def _cross_square(x: Words, *, half_bits: np.uint64, keys: list[np.uint64]) -> Words:
    """Apply a Feistel network of exclusive ors: a permutation of range(4 ** half_bits)."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = x >> half_bits, x & mask
    for key in keys:
        left, right = right, left ^ (mix((right ^ key) + np.uint64(_GOLDEN)) & mask)
    return (left << half_bits) | right
