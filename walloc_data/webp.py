"""A writer of lossless WebP (VP8L) for packed latents: smaller than libwebp's default, several times faster, and
the same bytes on every machine, whatever libwebp is there. Any WebP decoder reads them.

libwebp looks for what photographs and graphics have: repeated strings, palettes, colours that move together. Packed
latents have none of it: twelve channels of noise whose strength changes from place to place. What pays is one of a
few predictors for every 4 x 4 block, and a set of prefix codes for every class of blocks, classes found by iterating
between blocks and codes (Lloyd's algorithm with code length as the distance). That vectorises, so numpy does it.

Format: RFC 9649, "WebP Image Format", section 3. Used here: the predictor transform, meta prefix codes, no colour
cache, no backward references.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.errors import CodecError

__all__ = ["MAX_SIDE", "encode_lossless"]

MAX_SIDE = 16384  # the format's

_BLOCK_BITS = 2  # predictors and codes change every 4 x 4 pixels
_BLOCK = 1 << _BLOCK_BITS
_MAX_CLASSES = 48
_ROUNDS = 6  # of Lloyd's algorithm
_GRID = 16.0  # Bits are counted in sixteenths: in whole numbers, which sum up alike on every machine
_MODES = (0, 1, 2, 5, 7, 10, 12)  # of the format's 14 predictors, those that pay

# Alphabets: green has 24 more symbols, for the backward references that are not used.
_GREEN, _COLOUR = 280, 256
# Of the 19 symbols of a code of code lengths: 0 to 15 lengths, 16 repeats the last length, 17 and 18 are zeros.
_LENGTH_SYMBOLS = 19
_LENGTH_ORDER = np.array([17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


def encode_lossless(pictures: _Bytes) -> list[bytes]:
    """Write pictures as lossless WebP.

    Args:
        pictures: (N, H, W, 3) uint8, sides from 1 to 16384. Several at once cost less each.

    Returns:
        N files. Their pixels are the pictures', exactly; their bytes depend on the picture alone.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise CodecError(f"lossless WebP takes pictures (N, H, W, 3) uint8, not {pictures.dtype} {pictures.shape}")
    count, height, width = pictures.shape[:3]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise CodecError(f"WebP takes sides from 1 to {MAX_SIDE} pixels, not {width} x {height}")
    if count == 0:
        return []
    grid = _grid(height, width)
    residuals, modes, cost = _predict(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), grid)
    classes = _classify(residuals, modes, cost, grid)
    return _write(residuals, modes, classes, grid)


@dataclass(frozen=True)
class _Grid:
    """The blocks of one size of picture."""

    height: int
    width: int
    rows: int
    columns: int
    sizes: _Ints  # (rows, columns) pixels of each
    of_pixel: _Ints  # (H * W,) its block

    @property
    def blocks(self) -> int:
        return self.rows * self.columns


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> _Grid:
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    tall = np.minimum(_BLOCK, height - np.arange(rows) * _BLOCK)
    wide = np.minimum(_BLOCK, width - np.arange(columns) * _BLOCK)
    of_pixel = np.arange(height)[:, None] // _BLOCK * columns + np.arange(width) // _BLOCK
    return _Grid(height, width, rows, columns, np.multiply.outer(tall, wide), of_pixel.reshape(-1))


def _average(a: _Bytes, b: _Bytes) -> _Bytes:
    return (a & b) + ((a ^ b) >> 1)  # floor((a + b) / 2) without a wider type


def _predict(planes: _Bytes, grid: _Grid) -> tuple[_Bytes, _Bytes, npt.NDArray[np.int32]]:
    """Residuals (N, 3, H, W), the mode of every block (N, rows, columns), and about what its pixels cost."""
    count, _, height, width = planes.shape
    flat = planes.reshape(count, 3, height * width)

    def shifted(distance: int) -> _Bytes:
        moved = np.zeros_like(flat)
        if distance < height * width:
            moved[:, :, distance:] = flat[:, :, : height * width - distance]
        return moved.reshape(planes.shape)

    # Neighbours in raster order, as the format has them: right of the last column lies the next row's first pixel.
    left, top, top_left, top_right = shifted(1), shifted(width), shifted(width + 1), shifted(width - 1)
    vertical = _average(top, top_right)
    gradient = np.clip(np.subtract(np.add(left, top, dtype=np.int16), top_left, dtype=np.int16), 0, 255)
    predictions = {
        1: left,
        2: top,
        5: _average(_average(left, top_right), top),
        7: _average(left, top),
        10: _average(_average(left, top_left), vertical),
        12: gradient.astype(np.uint8),
    }
    residuals = [planes if mode == 0 else planes - predictions[mode] for mode in _MODES]
    costs = [
        # Without a prediction, values lie around 128 and not around 0.
        _block_cost(residual ^ np.uint8(128) if mode == 0 else residual, grid)
        for mode, residual in zip(_MODES, residuals, strict=True)
    ]
    predicted = np.stack(costs[1:])
    cost, choice = predicted.min(axis=0), predicted.argmin(axis=0) + 1
    # Residuals with and without a prediction share no code, so 2 x 2 blocks decide together whether to have one.
    bare = _each_four(costs[0]) < _each_four(cost)
    cost, choice = np.where(bare, costs[0], cost), np.where(bare, 0, choice)
    of_pixel = np.repeat(np.repeat(choice.astype(np.uint8), _BLOCK, axis=1), _BLOCK, axis=2)[:, None, :height, :width]
    result = planes.copy()
    for number in range(1, len(_MODES)):
        np.copyto(result, residuals[number], where=of_pixel == number)
    # The format's borders: the first pixel has no prediction, the first row the left one, the first column the top one.
    result[:, :, 0, 1:] = planes[:, :, 0, 1:] - planes[:, :, 0, :-1]
    result[:, :, 1:, 0] = planes[:, :, 1:, 0] - planes[:, :, :-1, 0]
    result[:, :, 0, 0] = planes[:, :, 0, 0]
    return result, np.array(_MODES, dtype=np.uint8)[choice], cost


@lru_cache(maxsize=1)
def _cost_of_sum() -> npt.NDArray[np.int32]:
    """For a sum of 16 residuals' sizes, sixteenths of bits a residual takes, less a constant.

    The bits of a residual follow the logarithm of its mean size; a third stands for what zero still costs.
    """
    return np.rint(_GRID * np.log2(np.arange(_BLOCK**2 * 128 + 1) / _BLOCK**2 + 0.35)).astype(np.int32)


def _block_cost(residual: _Bytes, grid: _Grid) -> npt.NDArray[np.int32]:
    """About how many sixteenths of bits a pixel of every block takes, (N, rows, columns), less a constant."""
    size = np.abs(residual.view(np.int8)).view(np.uint8)  # |-128| stays 128
    ragged = grid.height % _BLOCK or grid.width % _BLOCK
    if ragged:
        whole = np.zeros((*size.shape[:2], grid.rows * _BLOCK, grid.columns * _BLOCK), dtype=np.uint8)
        whole[:, :, : grid.height, : grid.width] = size
        size = whole
    pairs = np.add(size[:, :, ::2], size[:, :, 1::2], dtype=np.uint16)
    fours = pairs[:, :, ::2] + pairs[:, :, 1::2]
    fours = fours[..., ::2] + fours[..., 1::2]
    sums = fours[..., ::2] + fours[..., 1::2]  # of 4 x 4 pixels, of fewer at the borders
    if ragged:
        sums = sums.astype(np.int64) * _BLOCK**2 // grid.sizes
    cost: npt.NDArray[np.int32] = _cost_of_sum()[sums].sum(axis=1, dtype=np.int32)
    return cost


def _each_four(cost: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Sums over 2 x 2 blocks, (N, rows, columns), at the place of every one of them."""
    count, rows, columns = cost.shape
    even = np.zeros((count, rows + rows % 2, columns + columns % 2), dtype=np.int32)
    even[:, :rows, :columns] = cost
    sums = even[:, ::2] + even[:, 1::2]
    sums = sums[:, :, ::2] + sums[:, :, 1::2]
    return np.repeat(np.repeat(sums, 2, axis=1), 2, axis=2)[:, :rows, :columns]


@lru_cache(maxsize=1)
def _buckets() -> tuple[npt.NDArray[np.int64], int]:
    """Residuals by size, in buckets that widen away from 0 and from 128: enough to tell classes apart."""
    edges = np.array([1, 2, 3, 5, 7, 10, 15, 23, 41])
    signed = np.abs(np.arange(256).astype(np.uint8).view(np.int8).astype(int))
    near_zero = np.searchsorted(edges, signed, side="right")
    near_middle = np.searchsorted(edges, 128 - signed, side="right")
    bucket = np.where(signed < 64, near_zero, 2 * len(edges) + 1 - near_middle)
    return bucket.astype(np.int64), 2 * len(edges) + 2


def _classify(residuals: _Bytes, modes: _Bytes, cost: npt.NDArray[np.int32], grid: _Grid) -> _Ints:
    """The class of every block, (N, blocks), numbered from 0 in every picture without gaps."""
    count, blocks = len(residuals), grid.blocks
    classes = int(max(1, min(_MAX_CLASSES, round(0.25 * blocks**0.5))))
    bucket, buckets = _buckets()
    features = 3 * buckets
    base = (np.arange(count)[:, None, None] * blocks + grid.of_pixel) * features + np.arange(3)[:, None] * buckets
    index = base + bucket[residuals.reshape(count, 3, -1)]  # (N, 3, H * W)
    histogram = np.bincount(index.reshape(-1), minlength=count * blocks * features)
    histogram = histogram.reshape(count, blocks, features).astype(np.float32)
    # Start from classes of equal size by cost, blocks without a prediction apart.
    order = np.argsort(cost.reshape(count, blocks) + 2**16 * (modes.reshape(count, blocks) == 0), axis=1, kind="stable")
    member = np.empty((count, blocks), dtype=np.int64)
    np.put_along_axis(member, order, np.broadcast_to(np.arange(blocks) * classes // blocks, order.shape), axis=1)
    for _ in range(_ROUNDS):
        one_hot = (member[:, None, :] == np.arange(classes)[:, None]).astype(np.float32)  # (N, classes, blocks)
        # Products of small whole numbers: float32 holds their sums exactly, whatever the order.
        totals = (one_hot @ histogram).reshape(count, classes, 3, buckets).astype(np.float64) + 0.02
        bits = np.rint(-_GRID * np.log2(totals / totals.sum(axis=3, keepdims=True))).astype(np.float32)
        share = np.rint(-_GRID * np.log2(one_hot.mean(axis=2, dtype=np.float64) + 1e-3)).astype(np.float32)
        spent = histogram @ bits.reshape(count, classes, features).transpose(0, 2, 1) + share[:, None, :]
        member = spent.argmin(axis=2)
    # Number the classes that are left.
    used = np.zeros((count, classes), dtype=np.int64)
    used[np.arange(count)[:, None], member] = 1
    return np.take_along_axis(np.cumsum(used, axis=1) - 1, member, axis=1)


def _code_lengths(counts: _Ints, *, longest: int) -> _Ints:
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


def _codes(lengths: npt.NDArray[np.int64], *, longest: int) -> npt.NDArray[np.int64]:
    """The canonical codes of such lengths, first bit lowest, as the format writes them."""
    order = np.argsort(lengths, axis=1, kind="stable")
    ordered = np.take_along_axis(lengths, order, axis=1)
    weights = np.where(ordered > 0, np.int64(1) << (longest - ordered), 0)
    starts = np.cumsum(weights, axis=1) - weights  # the code, left-aligned in `longest` bits
    codes = np.empty_like(lengths)
    np.put_along_axis(codes, order, _reversed_bits(longest)[starts & ((1 << longest) - 1)], axis=1)
    return codes


@lru_cache(maxsize=1)
def _run_tokens() -> tuple[_Ints, _Ints, _Ints, _Ints]:
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


class _Stream:
    """Bits to be written, as (place, value, bits): sorted by place at the end, in the order of adding within one."""

    def __init__(self) -> None:
        self.parts: list[tuple[_Ints, npt.NDArray[np.uint64], _Ints]] = []

    def add(self, place: Any, value: Any, bits: Any) -> None:
        """Values below 2^64 of `bits` bits each; scalars are repeated."""
        place, value, bits = np.broadcast_arrays(place, value, bits)
        self.parts.append((place.reshape(-1), value.reshape(-1).astype(np.uint64), bits.reshape(-1).astype(np.int64)))

    def files(self, *, count: int, places: int) -> list[bytes]:
        """The bytes of `count` files; file i has the places from i * places on."""
        place = np.concatenate([part[0] for part in self.parts])
        order = np.argsort(place, kind="stable")
        value = np.concatenate([part[1] for part in self.parts])[order]
        bits = np.concatenate([part[2] for part in self.parts])[order]
        bounds = np.searchsorted(place[order], np.arange(count + 1) * places)
        end = np.cumsum(bits)
        start = end - bits
        length = np.append(start, end[-1:])[bounds]  # of everything before each file
        # Every file starts in a 64-bit word of its own.
        words = -(-np.diff(length) // 64)
        first_word = np.concatenate(([0], np.cumsum(words)))
        file = np.repeat(np.arange(count), np.diff(bounds))
        at = start - length[file] + first_word[file] * 64
        word, shift = at >> 6, (at & 63).astype(np.uint64)
        buffer = np.zeros(first_word[-1] + 1, dtype=np.uint64)
        # Bits of different values do not overlap, so sums are unions. At most one value crosses into each word.
        heads = np.flatnonzero(np.diff(word, prepend=-1))
        buffer[word[heads]] = np.add.reduceat(value << shift, heads)
        crossing = np.flatnonzero((at & 63) + bits > 64)
        buffer[word[crossing] + 1] += value[crossing] >> (np.uint64(64) - shift[crossing])
        data = buffer.astype("<u8").tobytes()
        sizes = -(-np.diff(length) // 8)
        return [data[8 * w : 8 * w + size] for w, size in zip(first_word[:-1].tolist(), sizes.tolist(), strict=True)]


def _write(residuals: _Bytes, modes: _Bytes, classes: _Ints, grid: _Grid) -> list[bytes]:
    count, blocks = len(residuals), grid.blocks
    sets = classes.max(axis=1) + 1  # of codes, in each picture
    first_set = np.concatenate(([0], np.cumsum(sets)))
    num_sets = int(first_set[-1])

    # A file's places, in order: header; modes; end of transforms; classes; four a set of codes; pixels.
    places = 7 + 4 * int(sets.max())
    begin = np.arange(count) * places
    begin_set = np.repeat(begin, sets) + 6 + 4 * (np.arange(num_sets) - np.repeat(first_set[:-1], sets))

    # Tables: green, red and blue of every set, then one for each picture of modes, then of classes.
    table_place = np.concatenate(((begin_set[:, None] + np.arange(3)).reshape(-1), begin + 1, begin + 4))
    alphabet = np.full(len(table_place), _GREEN)
    alphabet[: 3 * num_sets].reshape(-1, 3)[:, 1:] = _COLOUR
    picture = np.arange(count)[:, None]
    of_block = (first_set[:-1, None] + classes) * (3 * _GREEN)
    pixels = of_block[:, grid.of_pixel][:, None] + residuals.reshape(count, 3, -1)  # (N, 3, H * W)
    pixels += np.array([1, 0, 2])[:, None] * _GREEN  # a set's tables: green, red, blue
    mode_symbols = (3 * num_sets + picture) * _GREEN + modes.reshape(count, blocks)
    class_symbols = (3 * num_sets + count + picture) * _GREEN + classes
    every = np.concatenate((pixels.reshape(-1), mode_symbols.reshape(-1), class_symbols.reshape(-1)))
    counts = np.bincount(every, minlength=len(alphabet) * _GREEN).reshape(-1, _GREEN)
    lengths = _code_lengths(counts, longest=15)
    codes = _codes(lengths, longest=15).astype(np.uint64).reshape(-1)
    bits = lengths.reshape(-1)

    stream = _Stream()
    # Signature; sides; no alpha; version 0.
    stream.add(begin, 0x2F | (grid.width - 1) << 8 | (grid.height - 1) << 22, 40)
    # A transform, predictors, size of its blocks. Its picture: no colour cache.
    stream.add(begin, 1 | (_BLOCK_BITS - 2) << 3, 7)
    # No more transforms; no colour cache; classes, size of their blocks. Their picture: no colour cache.
    stream.add(begin + 3, 1 << 2 | (_BLOCK_BITS - 2) << 3, 7)
    for place, symbols in ((begin + 2, mode_symbols), (begin + 5, class_symbols)):
        for _ in range(4):  # red, blue, alpha, distance: always 0, in no bits
            stream.add(place, 1, 4)
        stream.add(place[:, None], codes[symbols], bits[symbols])
    for _ in range(2):  # alpha, distance
        stream.add(begin_set + 3, 1, 4)
    _add_tables(stream, table_place, counts, lengths, alphabet)
    red, green, blue = (bits[pixels[:, colour]] for colour in range(3))  # (N, H * W)
    value = codes[pixels[:, 1]]
    value |= codes[pixels[:, 0]] << green.astype(np.uint64)
    value |= codes[pixels[:, 2]] << (green + red).astype(np.uint64)
    stream.add((begin + places - 1)[:, None], value, green + red + blue)
    return [_riff(data) for data in stream.files(count=count, places=places)]


def _add_tables(stream: _Stream, place: _Ints, counts: _Ints, lengths: _Ints, alphabet: _Ints) -> None:
    """Add the descriptions of codes: their lengths, run-length coded, under a prefix code of their own."""
    single = (counts > 0).sum(axis=1) == 1
    # A code of one symbol, which then takes no bits: simple, one symbol, of 8 bits.
    stream.add(place[single], 1 | 1 << 2 | counts[single].argmax(axis=1) << 3, 11)
    place, lengths, alphabet = place[~single], lengths[~single], alphabet[~single]
    if not len(place):
        return
    row, column = np.nonzero(np.arange(_GREEN) < alphabet[:, None])
    length = lengths[row, column]
    starts = np.flatnonzero((np.diff(length, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0))
    run_length, run_row = length[starts], row[starts]
    first, symbols, extra, extra_bits = _run_tokens()
    key = np.diff(starts, append=len(length)) + np.where(run_length > 0, 0, 300)
    tokens = first[key + 1] - first[key]
    run = np.repeat(np.arange(len(starts)), tokens)
    at = np.arange(len(run)) - np.repeat(np.cumsum(tokens) - tokens, tokens) + first[key][run]
    symbol = np.where(symbols[at] < 0, run_length[run], symbols[at])
    token_row = run_row[run]
    flat = token_row * _LENGTH_SYMBOLS + symbol
    counts = np.bincount(flat, minlength=len(place) * _LENGTH_SYMBOLS).reshape(-1, _LENGTH_SYMBOLS)
    token_lengths = _code_lengths(counts, longest=7)
    token_codes = _codes(token_lengths, longest=7).reshape(-1)
    bits = token_lengths.reshape(-1)[flat]
    # A single kind of token is said to have one bit, and takes none.
    said = np.where((counts > 0).sum(axis=1, keepdims=True) == 1, counts > 0, token_lengths)[:, _LENGTH_ORDER]
    written = np.maximum(4, _LENGTH_SYMBOLS - np.argmax(said[:, ::-1] > 0, axis=1))
    stream.add(place, (written - 4) << 1, 5)  # not simple; how many lengths of token codes follow
    listed = np.arange(_LENGTH_SYMBOLS) < written[:, None]
    stream.add(np.repeat(place, written), said[listed], 3)
    stream.add(place, 0, 1)  # tokens until the alphabet is full
    stream.add(place[token_row], token_codes[flat] | extra[at] << bits, bits + extra_bits[at])


def _riff(data: bytes) -> bytes:
    padded = data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(padded)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + padded
