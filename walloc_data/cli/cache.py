"""The command for the cache folder."""

from pathlib import Path
from typing import Any

from walloc_data.cli.command import Args, Command, Outcome, Parser

__all__ = ["COMMANDS"]

_KINDS = ("shards", "arrays", "index")


def _cache_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("action", choices=("list", "clear"), help="show the sizes of the cached files, or delete them")
    add(
        "--folder",
        metavar="FOLDER",
        help="cache folder (default: $XDG_CACHE_HOME/walloc_data, else ~/.cache/walloc_data)",
    )
    add(
        "--only",
        choices=_KINDS,
        nargs="+",
        default=list(_KINDS),
        help="kinds of files: downloaded shards, decoded arrays, indices (default: all)",
    )


def _cache(args: Args) -> Outcome:
    from walloc_data.storage import cache_contents, clear_cache, default_cache_folder

    folder = args.folder or str(default_cache_folder())
    if args.action == "clear":
        found = clear_cache(folder, kinds=args.only)
    else:
        found = [item for item in cache_contents(folder) if item.kind in args.only]
    verb = "removed from" if args.action == "clear" else "in"
    note = _absence(Path(folder).expanduser())
    lines = [f"{item.kind}: {item.num_items} of {item.num_bytes / 1e6:.1f} MB {verb} {folder}" for item in found]
    data: dict[str, Any] = {
        "folder": folder,
        **{item.kind: {"num_items": item.num_items, "num_bytes": item.num_bytes} for item in found},
    }
    if note:
        data["note"], lines = note, [note]
    return Outcome(data, "\n".join(lines))


def _absence(folder: Path) -> str | None:
    """Return what is to be said about a folder that holds no cache; None if it holds one."""
    if not folder.is_dir():
        return f"{folder}: no such folder, so nothing is cached there"
    if any((folder / kind).is_dir() for kind in _KINDS):
        return None
    return f"{folder}: not a cache, which has a folder {', '.join(_KINDS[:-1])} or {_KINDS[-1]}"


COMMANDS = {
    "cache": Command(
        "list or clear the local cache of data sets",
        _cache_arguments,
        _cache,
        ("walloc-data cache list", "walloc-data cache clear --only arrays --folder /scratch/cache"),
    ),
}
