"""Prefix codes: Huffman code lengths, canonical codes, and the run-length coding of lengths."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["LENGTH_SYMBOLS", "code_lengths", "codes_of", "run_tokens"]

# The code of code lengths has 19 symbols: 0 to 15 lengths, 16 repeats the last length, 17 and 18 are runs of zeros.
LENGTH_SYMBOLS = 19

_Ints = npt.NDArray[np.int64]


def _ascending(numbers: _Ints) -> tuple[_Ints, _Ints]:
    """Return the places (in the flattened table, up to 512 columns) and values of entries that are not 0.

    They are sorted by value row by row, equal ones in their order. Sorting keys takes less time than argsort, and most
    of a table is 0.
    """
    columns = numbers.shape[1]
    flat = numbers.reshape(-1)
    place = np.flatnonzero(flat)
    row, column = np.divmod(place, columns)
    keys = row << 42 | flat[place] << 9 | column
    keys.sort()
    return (keys >> 42) * columns + (keys & 511), keys >> 9 & (1 << 33) - 1


def code_lengths(counts: _Ints, *, longest: int) -> _Ints:
    """Return the lengths of the best prefix codes (Huffman's) of at most `longest` bits, (rows, symbols <= 512).

    Rows with fewer than two symbols stay without a code.
    """
    place, ordered = _ascending(counts)
    weights = ordered.tolist()
    every: list[int] = []
    for size in np.count_nonzero(counts, axis=1).tolist():
        row = weights[len(every) : len(every) + size]
        if size < 2:
            every += [0] * size
            continue
        depths = _huffman_depths(row)
        floor = 1
        while depths[0] > longest:  # a flatter distribution has a shallower tree
            floor *= 2
            depths = _huffman_depths([max(weight, floor) for weight in row])
        every += depths
    lengths = np.zeros_like(counts)
    lengths.reshape(-1)[place] = every
    return lengths


def _huffman_depths(weights: list[int]) -> list[int]:
    """Return depths in the Huffman tree of ascending weights: the two lightest nodes are merged repeatedly."""
    n = len(weights)
    never = sum(weights) + 1
    leaves, trees = [*weights, never, never], [never] * (n + 1)
    leaf_parents, tree_parents = [], []
    leaf = tree = 0
    for parent in range(n - 1):
        if leaves[leaf] <= trees[tree]:
            total = leaves[leaf]
            leaf += 1
            leaf_parents.append(parent)
        else:
            total = trees[tree]
            tree += 1
            tree_parents.append(parent)
        if leaves[leaf] <= trees[tree]:
            total += leaves[leaf]
            leaf += 1
            leaf_parents.append(parent)
        else:
            total += trees[tree]
            tree += 1
            tree_parents.append(parent)
        trees[parent] = total
    depths = [1] * (n - 1)  # of the leaves below a tree; the last is the root
    for node in range(n - 3, -1, -1):
        depths[node] = depths[tree_parents[node]] + 1
    return [depths[parent] for parent in leaf_parents]


@lru_cache(maxsize=2)
def _reversed_bits(bits: int) -> npt.NDArray[np.int64]:
    values = np.arange(1 << bits)
    result = np.zeros_like(values)
    for i in range(bits):
        result |= ((values >> i) & 1) << (bits - 1 - i)
    return result


def codes_of(lengths: _Ints, *, longest: int) -> _Ints:
    """Return the canonical codes of such lengths, first bit lowest, as the format writes them."""
    place, ordered = _ascending(lengths)
    weights = np.int64(1) << (longest - ordered)
    # The code, left-aligned in `longest` bits. A row's weights make 2^longest, so the next row starts from 0 again.
    starts = np.cumsum(weights) - weights
    codes = np.zeros_like(lengths)
    codes.reshape(-1)[place] = _reversed_bits(longest)[starts & ((1 << longest) - 1)]
    return codes


@lru_cache(maxsize=1)
def run_tokens() -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Return the tokens that write a run of equal code lengths: key n for a length n times, 300 + n for n zeros.

    Returns:
        (first, symbols, extra, extra_bits): tokens of key k are first[k] to first[k + 1]; symbol -1 is the length.
    """
    symbols: list[tuple[int, int, int]] = []
    first = [0]
    for zeros in (False, True):
        for n in range(300):
            left = n
            if not zeros and left:
                symbols.append((-1, 0, 0))
                left -= 1
            while left:
                if zeros and left >= 11:
                    step = min(left, 138)
                    symbols.append((18, step - 11, 7))
                elif left >= 3:
                    step = min(left, 10 if zeros else 6)
                    symbols.append((17, step - 3, 3) if zeros else (16, step - 3, 2))
                else:
                    step = 1
                    symbols.append((0 if zeros else -1, 0, 0))
                left -= step
            first.append(len(symbols))
    columns = np.array(symbols, dtype=np.int64)
    return np.array(first), columns[:, 0], columns[:, 1], columns[:, 2]
