"""Random changes of bytes and JSON values for fuzzing, and a file system with wrong answers."""

import random
from pathlib import Path
from typing import Any

__all__ = ["NASTY", "changed", "mutated", "register_faulty"]

NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 2**31, 2**40, 2**62, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, "", "x", "0",
    "\x1b[2J", "../../x", "/etc/passwd", "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": None}, [1] * 1000,
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are nearly these."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        place = rng.randrange(len(result) + 1) if rng.random() < 0.7 else rng.randrange(min(len(result), 200) + 1)
        how = rng.choice(["flip", "byte", "cut", "insert", "delete", "repeat", "zeros", "number", "swap"])
        if how == "flip" and place < len(result):
            result[place] ^= 1 << rng.randrange(8)
        elif how == "byte" and place < len(result):
            result[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif how == "cut" and rng.random() < 0.3:
            del result[place:]
        elif how == "insert":
            result[place:place] = rng.randbytes(rng.choice([1, 4, 100]))
        elif how == "delete":
            del result[place : place + rng.choice([1, 4, 100])]
        elif how == "repeat":
            result[place:place] = result[place : place + rng.choice([8, 512])] * rng.choice([1, 3])
        elif how == "zeros":
            length = min(rng.choice([4, 512]), len(result) - place)
            result[place : place + length] = bytes(length)
        elif how == "number" and place + 8 <= len(result):
            value = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
            result[place : place + 8] = value.to_bytes(8, rng.choice(["little", "big"]))
        elif how == "swap" and place + 64 <= len(result):
            result[place : place + 32], result[place + 32 : place + 64] = (
                result[place + 32 : place + 64],
                result[place : place + 32],
            )
    return bytes(result)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it changed: replaced, removed, added, renamed, or put one level deeper."""
    places: list[tuple[Any, Any]] = []

    def walk(outer: Any) -> None:
        items = (
            list(outer.items())
            if isinstance(outer, dict)
            else list(enumerate(outer))
            if isinstance(outer, list)
            else []
        )
        for name, item in items[:12]:
            places.append((outer, name))
            walk(item)

    walk(value)
    outer, name = rng.choice(places)
    how = rng.choice(["replace"] * 6 + ["remove", "add", "rename", "deepen", "double"])
    if how == "remove":
        del outer[name]
    elif how == "add" and isinstance(outer, dict):
        outer[rng.choice(["", "x", "\x1b", "name", "kind"])] = rng.choice(NASTY)
    elif how == "rename" and isinstance(outer, dict):
        outer[f"{name}_"] = outer.pop(name)
    elif how == "deepen":
        for _ in range(rng.choice([1, 40, 900])):
            outer[name] = [outer[name]]
    elif how == "double" and isinstance(outer, list):
        outer.append(outer[name])
    elif isinstance(outer[name], int) and rng.random() < 0.5:
        outer[name] += rng.choice([-1, 1, 1000, -outer[name], 2**40])
    else:
        outer[name] = rng.choice(NASTY)
    return value


def register_faulty() -> None:
    """A file system in memory whose answers are sometimes errors, and sometimes lies; by its seed."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Faulty(MemoryFileSystem):  # type: ignore[misc]
        protocol, cachable = "faulty", False

        def __init__(self, seed: int = 0, **options: Any) -> None:
            super().__init__(**options)
            self.rng = random.Random(seed)
            self.share = self.rng.choice([0.02, 0.1, 0.4])

        def fault(self) -> str:
            if self.rng.random() > self.share:
                return ""
            fault = self.rng.choice(["reset", "time", "503", "gone", "refused", "cut", "flip", "empty", "long"])
            errors = {
                "reset": ConnectionResetError("by peer"), "time": TimeoutError("timed out"), "503": OSError("503"),
                "gone": FileNotFoundError("no such key"), "refused": PermissionError("403"),
            }  # fmt: skip
            if fault in errors:
                raise errors[fault]
            return fault

        def lie(self, data: bytes) -> bytes:
            fault = self.fault()
            if fault == "flip" and data:
                place = self.rng.randrange(len(data))
                return data[:place] + bytes([data[place] ^ 1 << self.rng.randrange(8)]) + data[place + 1 :]
            return {"cut": data[: len(data) // 2], "empty": b"", "long": data + data}.get(fault, data)

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
            return self.lie(super().cat_file(path, start=start, end=end))

        def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
            Path(lpath).write_bytes(self.lie(super().cat_file(rpath)))

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            found = dict(super().info(path))
            if (fault := self.fault()) and found.get("size"):
                found["size"] = {"cut": found["size"] // 2, "empty": 0, "long": 10**15, "flip": None}[fault]
            return found

        def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
            return [] if self.fault() else super().ls(path, detail=detail)

    fsspec.register_implementation("faulty", Faulty, clobber=True)
