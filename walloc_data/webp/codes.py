"""Prefix codes: Huffman's lengths, canonical codes, and the run-length form in which a file carries the lengths."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["LENGTH_SYMBOLS", "code_lengths", "codes_of", "run_tokens"]

# The code of code lengths has 19 symbols: 0 to 15 lengths, 16 repeats the last length, 17 and 18 are runs of zeros.
LENGTH_SYMBOLS = 19

_Ints = npt.NDArray[np.int64]


def code_lengths(counts: _Ints, *, longest: int) -> _Ints:
    """Lengths of the best prefix codes (Huffman's) of at most `longest` bits, (rows, symbols).

    Rows with fewer than two symbols stay without a code.
    """
    lengths = np.zeros_like(counts)
    order = np.argsort(counts, axis=1, kind="stable")
    ordered = np.take_along_axis(counts, order, axis=1)
    absent = (ordered == 0).sum(axis=1)
    for row in np.flatnonzero(counts.shape[1] - absent > 1).tolist():
        first = int(absent[row])
        weights = ordered[row, first:].tolist()
        depths = _huffman_depths(weights)
        floor = 1
        while depths[0] > longest:  # a flatter distribution has a shallower tree
            floor *= 2
            depths = _huffman_depths([max(weight, floor) for weight in weights])
        lengths[row, order[row, first:]] = depths
    return lengths


def _huffman_depths(weights: list[int]) -> list[int]:
    """Depths in the Huffman tree of ascending weights, in place (Moffat & Katajainen, WADS 1995)."""
    a, n = list(weights), len(weights)
    leaf = root = 0
    for parent in range(n - 1):  # the two lightest of leaves and trees become one tree
        total = 0
        for _ in range(2):
            if leaf >= n or (root < parent and a[root] < a[leaf]):
                total += a[root]
                a[root] = parent
                root += 1
            else:
                total += a[leaf]
                leaf += 1
        a[parent] = total
    a[n - 2] = 0
    for node in range(n - 3, -1, -1):  # parents to depths of inner nodes
        a[node] = a[a[node]] + 1
    free, depth, node, leaf = 1, 0, n - 2, n - 1
    while free:  # what inner nodes leave free at a depth are leaves
        inner = 0
        while node >= 0 and a[node] == depth:
            inner += 1
            node -= 1
        for _ in range(free - inner):
            a[leaf] = depth
            leaf -= 1
        free, depth = 2 * inner, depth + 1
    return a


@lru_cache(maxsize=2)
def _reversed_bits(bits: int) -> npt.NDArray[np.int64]:
    values = np.arange(1 << bits)
    result = np.zeros_like(values)
    for i in range(bits):
        result |= ((values >> i) & 1) << (bits - 1 - i)
    return result


def codes_of(lengths: npt.NDArray[np.int64], *, longest: int) -> npt.NDArray[np.int64]:
    """The canonical codes of such lengths, first bit lowest, as the format writes them."""
    order = np.argsort(lengths, axis=1, kind="stable")
    ordered = np.take_along_axis(lengths, order, axis=1)
    weights = np.where(ordered > 0, np.int64(1) << (longest - ordered), 0)
    starts = np.cumsum(weights, axis=1) - weights  # the code, left-aligned in `longest` bits
    codes = np.empty_like(lengths)
    np.put_along_axis(codes, order, _reversed_bits(longest)[starts & ((1 << longest) - 1)], axis=1)
    return codes


@lru_cache(maxsize=1)
def run_tokens() -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """How a run of equal code lengths is written: for key n (a length n times) and 300 + n (n zeros), tokens.

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
