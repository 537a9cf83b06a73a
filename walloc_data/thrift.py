"""Reader of Thrift's compact protocol, in which the footer and the page headers of parquet files are written.

Specification: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from typing import Any

from walloc_data.errors import FormatError

__all__ = ["thrift_struct"]

_MAX_DEPTH = 16
_MAX_LENGTH = 1_000_000  # of a list; pyarrow reads no longer ones either


def thrift_struct(data: bytes, place: int, *, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by their numbers, and the position after it.

    Args:
        data: bytes that contain the struct.
        place: position of its first byte.
        depth: number of structs and lists around it.

    Returns:
        A dict from the number of a field to its value, and a position. Integers become int, text and binary data bytes,
        lists and sets list, structs dict, and doubles None.

    Raises:
        IndexError: the data end inside the struct.
        FormatError: the data are not of this protocol, nested more than 16 deep, or a list has over a million elements.

    Example:
        >>> from walloc_data.thrift import thrift_struct
        >>> thrift_struct(bytes([0x15, 0x06, 0x18, 0x02, 97, 98, 0x00]), 0)  # field 1 is 3, field 2 is "ab"
        ({1: 3, 2: b'ab'}, 7)
    """
    fields: dict[int, Any] = {}
    number = 0
    while (byte := data[place]) != 0:
        place += 1
        if byte >> 4:
            number += byte >> 4
        else:
            value, place = _integer(data, place)
            number = _signed(value)
        kind = byte & 15
        if kind in (1, 2):  # true and false have no bytes of their own
            fields[number] = kind == 1
        else:
            fields[number], place = _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _MAX_DEPTH:
        raise FormatError("not a parquet file, or damaged: nested too deep")
    if kind in (1, 2, 3):
        return data[place], place + 1
    if kind in (4, 5, 6):
        value, place = _integer(data, place)
        return _signed(value), place
    if kind in (7, 8):
        length, place = (8, place) if kind == 7 else _integer(data, place)
        if place + length > len(data):
            raise IndexError(place)
        return data[place : place + length] if kind == 8 else None, place + length
    if kind in (9, 10):
        length, kind = data[place] >> 4, data[place] & 15
        place += 1
        if length == 15:
            length, place = _integer(data, place)
        if length > _MAX_LENGTH:
            raise FormatError(f"not a parquet file, or damaged: a list of {length} elements")
        values = []
        for _ in range(length):  # each takes a byte at least, so that the data end before memory does
            value, place = _value(data, place, kind, depth + 1)
            values.append(value)
        return values, place
    if kind == 12:
        return thrift_struct(data, place, depth=depth + 1)
    raise FormatError(f"not a parquet file, or damaged: a field of kind {kind}")


def _integer(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise FormatError("not a parquet file, or damaged: a number of more than 64 bits")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
