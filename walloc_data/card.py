"""The data set card: README.md with the YAML by which the Hugging Face Hub and `datasets` find the splits.

Every conversion rewrites it. What a user has changed is kept: all keys of the YAML except those computed from the data,
and all text outside the two comments that enclose the generated part (`templates/card.md.j2`).
"""

import json
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from walloc_data.format import ColumnType, Manifest, SplitRecord
from walloc_data.storage import Store
from walloc_data.templating import render

__all__ = ["PREVIEW_NAME", "render_card", "shard_urls", "show_preview", "write_card"]

CARD_NAME = "README.md"
PREVIEW_NAME = "preview.webp"
MAX_CARD_BYTES = 4 * 2**20
MAX_NAMES_LISTED = 200

_BEGIN = "<!-- walloc_data: written anew by every conversion, down to the end mark -->"
_PREVIEW = "<!-- walloc_data: preview -->"
_SHOWN = f"![Samples: stored latent, its channels, decoded picture]({PREVIEW_NAME})"
_END = "<!-- walloc_data: end -->"
_FOLLOWS_FROM_DATA = ("configs", "size_categories")
_TOP_KEY = re.compile(r"([A-Za-z_][\w-]*):")


def write_card(store: Store, manifest: Manifest) -> None:
    """Write the README.md of a data set, keeping the changes of a user in the existing one.

    Example:
        >>> from walloc_data.card import write_card
        >>> from walloc_data.storage import Store, read_manifest
        >>> store = Store("my-latents")
        >>> write_card(store, read_manifest(store))
        >>> store.read_bytes("README.md", max_bytes=2**20).splitlines()[0]
        b'---'
    """
    card = render_card(manifest, previous=_read(store), preview=store.exists(PREVIEW_NAME))
    store.write_bytes(CARD_NAME, card.encode())


def show_preview(store: Store) -> None:
    """Show the file `preview.webp` of a data set in its card, unless the card does not exist or has no mark for it.

    Example:
        >>> from walloc_data.card import show_preview
        >>> from walloc_data.storage import Store
        >>> store = Store("my-latents")
        >>> show_preview(store)
        >>> b"](preview.webp)" in store.read_bytes("README.md", max_bytes=2**20)
        True
    """
    card = _read(store)
    if card is not None and f"]({PREVIEW_NAME})" not in card and _PREVIEW in card:
        store.write_bytes(CARD_NAME, card.replace(_PREVIEW, f"{_PREVIEW}\n\n{_SHOWN}", 1).encode())


def _read(store: Store) -> str | None:
    if not store.exists(CARD_NAME):
        return None
    return store.read_bytes(CARD_NAME, max_bytes=MAX_CARD_BYTES).decode("utf-8", "replace")


def render_card(manifest: Manifest, *, previous: str | None = None, preview: bool = False) -> str:
    """Return a complete card.

    Args:
        manifest: manifest of the data set.
        previous: existing card, whose changes by a user are kept.
        preview: show `preview.webp`, which must lie in the same folder.

    Example:
        >>> from walloc_data.card import render_card
        >>> from walloc_data.storage import Store, read_manifest
        >>> print(render_card(read_manifest(Store("my-latents")))[:14])
        ---
        license: o
    """
    yaml = _front_matter(manifest)
    ours = _body(manifest, preview=preview)
    if previous is None:
        return _join(yaml, ours)
    kept, body = _take_apart(previous)
    yaml = kept | {key: yaml[key] for key in _FOLLOWS_FROM_DATA} if kept else yaml
    before, begin, rest = body.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        return _join(yaml, body)  # without our comments, the user wrote all of the text
    return _join(yaml, before + ours + after)


def _join(yaml: dict[str, str], body: str) -> str:
    return "---\n" + "".join(yaml.values()) + "---\n\n" + body.strip("\n") + "\n"


def _take_apart(card: str) -> tuple[dict[str, str], str]:
    """Return the text of each top-level key of a card's YAML, and the text after the YAML."""
    if not card.startswith("---\n") or "\n---" not in card[3:]:
        return {}, card
    yaml, _, body = card[4:].partition("\n---")
    blocks: dict[str, str] = {}
    key = ""
    for line in yaml.splitlines():
        match = _TOP_KEY.match(line)
        key = match[1] if match else key
        if key:
            blocks[key] = blocks.get(key, "") + line + "\n"
    return blocks, body.lstrip("-").lstrip("\n")


def _front_matter(manifest: Manifest) -> dict[str, str]:
    """Return the YAML text of each top-level key. Strings are quoted as in JSON, which is valid YAML."""
    labelled = any(record.labelled for record in manifest.splits.values())
    tags = ["walloc", "walloc_data", "latents", "learned-compression", "webdataset", "timm"]
    blocks = {
        "license": "license: other  # that of the source pictures; the converter cannot know it\n",
        "license_name": "license_name: unknown\n",
        "pretty_name": f"pretty_name: {json.dumps(_title(manifest), ensure_ascii=False)}\n",
    }
    if labelled:
        blocks["task_categories"] = "task_categories:\n- image-classification\n"
    blocks["size_categories"] = f"size_categories:\n- {_size_category(manifest)}\n"
    blocks["tags"] = "tags:\n" + "".join(f"- {tag}\n" for tag in tags)
    configs = ["configs:", "- config_name: default", "  data_files:"]
    for split, record in manifest.splits.items():
        if record.shards:
            # Not "train-*", which would also match the shards of a split named train-extra.
            digits = sorted({len(_digits(shard.name)) for shard in record.shards})
            patterns = [f'"data/{split}-{"[0-9]" * number}.tar"' for number in digits]
            configs += [f'  - split: "{_hub_split(split)}"', "    path:", *(f"    - {pattern}" for pattern in patterns)]
    blocks["configs"] = "\n".join(configs) + "\n"
    return blocks


def _hub_split(split: str) -> str:
    """Return a split's name without hyphens, which `datasets` does not allow."""
    return split.replace("-", "_")


def _digits(name: str) -> str:
    return name.rpartition("-")[2].removesuffix(".tar")


def _title(manifest: Manifest) -> str:
    """Return a title with the last part of the source's location only: the rest may be a private path."""
    locations = [str(record.source.get("location", "")) for record in manifest.splits.values()]
    name = PurePosixPath(re.split(r"[:?]", next(iter(locations), ""))[-1].rstrip("/")).name
    name = "".join(character if character.isprintable() else " " for character in name)[:80]
    return f"WaLLoC latents of {name}" if name else "WaLLoC latents"


def _size_category(manifest: Manifest) -> str:
    samples = sum(record.num_samples for record in manifest.splits.values())
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    if samples < 1000:
        return "n<1K"
    for i in range(1, len(names)):
        if samples < 10 ** (3 + i):
            return f"{names[i - 1]}<n<{names[i]}"
    return "n>1T"


def _body(manifest: Manifest, *, preview: bool) -> str:
    """Return the generated part of the card, with the comments that enclose it."""
    splits = list(manifest.splits.items())
    columns = _columns(manifest)
    return render(
        "card.md.j2",
        begin=_BEGIN,
        end=_END,
        preview_mark=_PREVIEW,
        preview=_SHOWN if preview else None,
        title=_title(manifest),
        codec=manifest.codec,
        codec_settings=manifest.settings,
        splits=splits,
        first=_loading(manifest, *splits[0]) if splits and splits[0][1].shards else None,
        labelled=any(record.labelled for record in manifest.splits.values()),
        columns=columns[:MAX_NAMES_LISTED],
        more_columns=max(0, len(columns) - MAX_NAMES_LISTED),
        class_names=manifest.class_names or (),
        max_names=MAX_NAMES_LISTED,
    ).rstrip("\n")


def _loading(manifest: Manifest, split: str, record: SplitRecord) -> dict[str, object]:
    """Return the values of the examples of loading, which read one split."""
    return {
        "name": split,
        "hub_name": _hub_split(split),
        "trainable": manifest.class_names is not None and record.labelled and record.latent_shape is not None,
        "shards": shard_urls((shard.name for shard in record.shards), prefix="NAME/"),
    }


def _columns(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the name and type of each column of the sources; a column with several types names them all."""
    splits = [record.columns or {} for record in manifest.splits.values()]
    named = {}
    for name in dict.fromkeys(name for columns in splits for name in columns):
        types = dict.fromkeys(str(ColumnType.from_json(columns[name])) for columns in splits if name in columns)
        named[name] = " or ".join(types)
    return list(named.items())


def shard_urls(names: Iterable[str], *, prefix: str = "") -> str:
    """Write shard names as brace ranges, joined by ``::`` where numbers are missing between them.

    A shard without any readable picture has no file, so its number is missing, and ranges must not cover it. webdataset
    and `open_source("wds:...")` expand the result to exactly these names.

    Args:
        names: paths ending in ``-NUMBER.tar``, in order.
        prefix: text put before each range, such as a folder and a slash.

    Example:
        >>> from walloc_data.card import shard_urls
        >>> shard_urls(["data/train-00000.tar", "data/train-00001.tar", "data/train-00003.tar"])
        'data/train-{00000..00001}.tar::data/train-00003.tar'
    """
    runs: list[tuple[str, str, str]] = []  # stem, first and last number as text
    for name in names:
        stem, _, digits = name.removesuffix(".tar").rpartition("-")
        if runs and runs[-1][0] == stem and int(runs[-1][2]) + 1 == int(digits) and len(runs[-1][2]) == len(digits):
            runs[-1] = (stem, runs[-1][1], digits)
        else:  # also where the number of digits changes, as a range has one
            runs.append((stem, digits, digits))
    return "::".join(
        f"{prefix}{stem}-{first if first == last else f'{{{first}..{last}}}'}.tar" for stem, first, last in runs
    )
