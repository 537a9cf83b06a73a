"""Writing of the bits of a file from blocks and classes."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.webp.blocks import BLOCK_BITS, Grid
from walloc_data.webp.codes import LENGTH_SYMBOLS, code_lengths, codes_of, run_tokens

__all__ = ["write"]

# Alphabets: green has 24 more symbols, for the backward references that are not used.
_GREEN, _COLOUR = 280, 256
_LENGTH_ORDER = np.array([17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


class BitStream:
    """Bits to be written, as (place, value, bits): sorted by place at the end, in the order of adding within one."""

    def __init__(self) -> None:
        self.parts: list[tuple[_Ints, npt.NDArray[np.uint64], _Ints]] = []

    def add(self, place: _Ints, value: Any, bits: Any) -> None:
        """Append values below 2^64 of `bits` bits each, one for each place; scalars are repeated."""
        value, bits = np.asarray(value, dtype=np.uint64).reshape(-1), np.asarray(bits, dtype=np.int64).reshape(-1)
        if len(value) != len(place):
            value = value.repeat(len(place))
        if len(bits) != len(place):
            bits = bits.repeat(len(place))
        self.parts.append((place, value, bits))

    def files(self, *, places: int, values: npt.NDArray[np.uint64], bits: _Ints) -> list[bytes]:
        """Return the bytes of the files: file i has the places from i * places on, then row i of `values`."""
        place = np.concatenate([part[0] for part in self.parts])
        order = np.argsort(place, kind="stable")
        head = np.concatenate([part[1] for part in self.parts])[order]
        head_bits = np.concatenate([part[2] for part in self.parts])[order]
        bounds = np.searchsorted(place[order], np.arange(len(values) + 1) * places)
        start = np.concatenate(([0], np.cumsum(head_bits)))
        body_end = np.cumsum(bits, axis=1)
        length = np.diff(start[bounds])
        words = -(-(length + body_end[:, -1]) // 64)  # every file starts in a 64-bit word of its own
        first_word = np.concatenate(([0], np.cumsum(words)))
        buffer = np.zeros(first_word[-1] + 1, dtype=np.uint64)
        begin = first_word[:-1] * 64
        _deposit(buffer, start[:-1] + np.repeat(begin - start[bounds[:-1]], np.diff(bounds)), head, head_bits)
        _deposit(
            buffer, (body_end - bits + (begin + length)[:, None]).reshape(-1), values.reshape(-1), bits.reshape(-1)
        )
        data = buffer.astype("<u8").tobytes()
        sizes = -(-(length + body_end[:, -1]) // 8)
        return [data[8 * w : 8 * w + size] for w, size in zip(first_word[:-1].tolist(), sizes.tolist(), strict=True)]


def _deposit(buffer: npt.NDArray[np.uint64], at: _Ints, value: npt.NDArray[np.uint64], bits: _Ints) -> None:
    """Put values into a buffer of zeros, at ascending positions in bits."""
    word, low = at >> 6, at & 63
    shift = low.astype(np.uint64)
    # Bits of different values do not overlap, so sums are unions. At most one value crosses into each word.
    heads = np.flatnonzero(word[1:] != word[:-1]) + 1
    heads = np.concatenate(([0], heads))
    buffer[word[heads]] += np.add.reduceat(value << shift, heads)
    crossing = np.flatnonzero(low + bits > 64)
    buffer[word[crossing] + 1] += value[crossing] >> (np.uint64(64) - shift[crossing])


def write(residuals: _Bytes, modes: _Bytes, classes: _Ints, grid: Grid) -> list[bytes]:
    count, blocks = len(residuals), grid.blocks
    sets = classes.max(axis=1) + 1  # of codes, in each picture
    first_set = np.concatenate(([0], np.cumsum(sets)))
    num_sets = int(first_set[-1])

    # A file's places, in order: header; modes; end of transforms; classes; four a set of codes. Pixels follow.
    places = 6 + 4 * int(sets.max())
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
    lengths = code_lengths(counts, longest=15)
    codes = codes_of(lengths, longest=15).astype(np.uint64).reshape(-1)
    bits = lengths.reshape(-1)

    stream = BitStream()
    # Signature; sides; no alpha; version 0. A transform, predictors, size of its blocks. Its picture: no colour cache.
    header = 0x2F | (grid.width - 1) << 8 | (grid.height - 1) << 22 | (1 | (BLOCK_BITS - 2) << 3) << 40
    stream.add(begin, header, 47)
    # No more transforms; no colour cache; classes, size of their blocks. Their picture: no colour cache.
    stream.add(begin + 3, 1 << 2 | (BLOCK_BITS - 2) << 3, 7)
    for place, symbols in ((begin + 2, mode_symbols), (begin + 5, class_symbols)):
        stream.add(place, 0x1111, 16)  # red, blue, alpha, distance: always 0, in no bits
        stream.add(place.repeat(blocks), codes[symbols], bits[symbols])
    stream.add(begin_set + 3, 0x11, 8)  # alpha, distance
    _add_tables(stream, table_place, counts, lengths, alphabet)
    red, green, blue = (bits[pixels[:, colour]] for colour in range(3))  # (N, H * W)
    value = codes[pixels[:, 1]]
    value |= codes[pixels[:, 0]] << green.astype(np.uint64)
    green += red
    value |= codes[pixels[:, 2]] << green.astype(np.uint64)
    green += blue
    return [_riff(data) for data in stream.files(places=places, values=value, bits=green)]


def _add_tables(stream: BitStream, place: _Ints, counts: _Ints, lengths: _Ints, alphabet: _Ints) -> None:
    """Add the descriptions of codes: their lengths, run-length coded, under a prefix code of their own."""
    single = (counts > 0).sum(axis=1) == 1
    # A code of one symbol, which then takes no bits: simple, one symbol, of 8 bits.
    stream.add(place[single], 1 | 1 << 2 | counts[single].argmax(axis=1) << 3, 11)
    place, lengths, alphabet = place[~single], lengths[~single], alphabet[~single]
    if not len(place):
        return
    change = np.ones(lengths.shape, dtype=np.bool_)
    np.not_equal(lengths[:, 1:], lengths[:, :-1], out=change[:, 1:])
    starts = np.flatnonzero(change)
    run_row, column = np.divmod(starts, _GREEN)
    within = column < alphabet[run_row]
    starts, run_row = starts[within], run_row[within]
    run_length = lengths.reshape(-1)[starts]
    end = np.minimum(np.append(starts[1:], lengths.size), run_row * _GREEN + alphabet[run_row])
    first, symbols, extra, extra_bits = run_tokens()
    key = end - starts + np.where(run_length > 0, 0, 300)
    key_first = first[key]
    tokens = first[key + 1] - key_first
    run = np.repeat(np.arange(len(starts)), tokens)
    at = np.arange(len(run)) + (key_first - np.cumsum(tokens) + tokens)[run]
    symbol = np.where(symbols[at] < 0, run_length[run], symbols[at])
    token_row = run_row[run]
    flat = token_row * LENGTH_SYMBOLS + symbol
    counts = np.bincount(flat, minlength=len(place) * LENGTH_SYMBOLS).reshape(-1, LENGTH_SYMBOLS)
    token_lengths = code_lengths(counts, longest=7)
    token_codes = codes_of(token_lengths, longest=7).reshape(-1)
    bits = token_lengths.reshape(-1)[flat]
    # A single kind of token is said to have one bit, and takes none.
    said = np.where((counts > 0).sum(axis=1, keepdims=True) == 1, counts > 0, token_lengths)[:, _LENGTH_ORDER]
    written = np.maximum(4, LENGTH_SYMBOLS - np.argmax(said[:, ::-1] > 0, axis=1))
    stream.add(place, (written - 4) << 1, 5)  # not simple; how many lengths of token codes follow
    listed = np.arange(LENGTH_SYMBOLS) < written[:, None]
    stream.add(np.repeat(place, written), said[listed], 3)
    stream.add(place, 0, 1)  # tokens until the alphabet is full
    stream.add(place[token_row], token_codes[flat] | extra[at] << bits, bits + extra_bits[at])


def _riff(data: bytes) -> bytes:
    padded = data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(padded)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + padded
