"""The report: one self-contained HTML page on what is in a data set. No scripts, and nothing from the network.

Class names, names of pictures, reasons of failures and everything else in a data set may come from anybody: all of it
is escaped, and the page's content security policy lets nothing run even so.
"""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import StorageError
from walloc_data.files import whole_file
from walloc_data.format import Manifest, SplitRecord
from walloc_data.report.charts import Charts, bar_table, number, picture_bytes
from walloc_data.report.history import read_failures, read_runs
from walloc_data.report.pictures import class_pictures, walk_through
from walloc_data.report.samples import OpenSplit, open_split
from walloc_data.report.style import STYLE
from walloc_data.storage import Store, read_manifest

__all__ = ["report"]

MAX_CLASSES_IN_TABLE = 40
MAX_COLUMNS = 400
MAX_SHARDS_LISTED = 2000
_SHARD_COLUMNS = (("shard", ""), ("samples", ' class="num"'), ("bytes", ' class="num"'), ("sha256", ""))


@renamed_arguments(out="dataset")
def report(
    dataset: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    samples_per_class: int = 3,
    max_classes: int = 24,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file that shows what a data set holds.

    What it is, its codec and settings; and for every split: class balance, sizes and shapes, bits per pixel, what each
    latent channel holds and costs, pictures of every class, failures with their reasons, the speed of the conversion
    (where its log is at hand) and checksums. The same data set gives the same page.

    Args:
        dataset: the data set.
        target: the file to write.
        samples_per_class, max_classes: how many pictures to show.

    Raises:
        FormatError: no data set there, or a damaged one.

    Example:
        >>> from walloc_data.report import report
        >>> report("my-latents", "report.html")
        PosixPath('report.html')
    """
    store = Store(dataset, storage_options=storage_options)
    manifest = read_manifest(store)
    charts = Charts()
    name = store.url.rstrip("/").rpartition("/")[2]
    sections = []
    for split in manifest.splits:
        with open_split(dataset, split=split, storage_options=storage_options) as opened:
            sections.append(_split(opened, charts, per_class=samples_per_class, max_classes=max_classes))
    page = _page(name, _head(name, manifest) + _codec(manifest) + "".join(sections))
    path = Path(target)
    try:
        with whole_file(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the report could not be written ({error})") from error
    return path


def _page(name: str, body: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: latents</title><style>{STYLE}</style></head>\n<body>{body}</main></body></html>\n"
    )


def _tiles(tiles: list[tuple[str, str]]) -> str:
    cells = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _head(name: str, manifest: Manifest) -> str:
    spec, records = manifest.codec, manifest.splits.values()
    samples = sum(record.num_samples for record in records)
    failures = sum(record.num_failures for record in records)
    classes = f" of {len(manifest.class_names):,} classes" if manifest.class_names else ""
    links = "".join(f'<li><a href="#split-{escape(split)}">{escape(split)}</a></li>' for split in manifest.splits)
    return (
        f"<header><h1><bdi>{escape(name)}</bdi></h1><p>{samples:,} pictures{classes}, each stored as a grid of "
        f"{spec.latent_dim} small integers for every {spec.cell_px} × {spec.cell_px} pixels: "
        f"{spec.dimensionality_reduction:g} times fewer values than the picture has. Every picture below was decoded "
        f"from its latent.</p>"
        + _tiles(
            [
                ("samples", f"{samples:,}"),
                ("splits", ", ".join(f"{split} {record.num_samples:,}" for split, record in manifest.splits.items())),
                ("shards", picture_bytes(sum(record.num_bytes for record in records))),
                ("not encoded", f"{failures:,}"),
            ]
        )
        + f'</header><nav aria-label="Contents"><ul><li><a href="#codec">Codec and settings</a></li>{links}</ul></nav>'
        "<main>"
    )


def _codec(manifest: Manifest) -> str:
    spec, settings = manifest.codec, manifest.settings
    size = settings.resized
    order = "the source's" if settings.shuffle_seed is None else f"shuffled with seed {settings.shuffle_seed}"
    rows = [
        ("Codec", spec.name),
        ("Encoder", f"sha256 {spec.encoder_sha256}"),
        ("Transform", f"{spec.J} levels of {spec.wavelet} wavelet packets, then {spec.latent_dim} linear channels"),
        (
            "Values",
            f"{spec.latent_bits} bits, from {-(2 ** (spec.latent_bits - 1))} to {2 ** (spec.latent_bits - 1) - 1}",
        ),
        ("Pictures", size),
        ("Order", order),
        ("Mirrored latents", "stored too" if settings.mirror else "not stored"),
        ("Shards", f"{settings.samples_per_shard:,} samples each; WebP effort {settings.webp_effort}"),
        ("Under transparency", f"RGB {settings.background}"),
        ("Full brightness of 16-bit files", f"{65535 if settings.max_value is None else settings.max_value:,}"),
        ("Written by", ", ".join(f"{name} {version}" for name, version in sorted(manifest.written_by.items()))),
    ]
    return f'<section id="codec"><h2>Codec and settings</h2>{_facts(rows)}</section>'


def _facts(rows: list[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td><bdi>{escape(value)}</bdi></td></tr>' for key, value in rows
    )
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def _split(opened: OpenSplit, charts: Charts, *, per_class: int, max_classes: int) -> str:
    record, split = opened.record, opened.split
    parts = [
        f'<section id="split-{escape(split)}"><h2>Split {escape(split)}</h2>',
        _facts([*_source(record), ("Latents", _shape(record)), ("Labels", "yes" if record.labelled else "none")]),
    ]
    if record.num_samples:
        codec, info = opened.load_codec()
        parts += [
            "<h3>From integers to pictures</h3>",
            walk_through(opened, codec, info),
            "<h3>Pictures</h3>",
            class_pictures(opened, codec, info, per_class=per_class, max_classes=max_classes),
            _classes(opened, charts) if record.labelled else "",
            "<h3>Sizes and bits</h3>",
            _sizes(opened, charts),
            "<h3>Latent channels</h3>",
            _channels(opened, charts),
        ]
    parts += [_failures(opened), _speed(opened), _checksums(record), "</section>"]
    return "".join(parts)


def _source(record: SplitRecord) -> list[tuple[str, str]]:
    names = {"kind": "Kind of source", "location": "Source", "num_items": "Pictures in it", "identity": "Its identity"}
    return [(text, str(record.source[key])) for key, text in names.items() if record.source.get(key) not in (None, "")]


def _shape(record: SplitRecord) -> str:
    if record.latent_shape is None:
        return "of several shapes"
    c, h, w = record.latent_shape
    return f"{c} × {h} × {w} each"


def _classes(opened: OpenSplit, charts: Charts) -> str:
    names = opened.manifest.class_names or ()
    labels = opened.index["label"]
    present, numbers = np.unique(labels[labels >= 0], return_counts=True)
    counts = dict.fromkeys(range(len(names)), 0) | dict(zip(present.tolist(), numbers.tolist(), strict=True))
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    mean = sum(counts.values()) / len(counts)
    caption = (
        f"{len(counts):,} classes; from {min(counts.values()):,} to {max(counts.values()):,} samples each, "
        f"{number(mean)} on average"
    )
    shown, chart = ranked, ""
    if len(ranked) > MAX_CLASSES_IN_TABLE:
        half = MAX_CLASSES_IN_TABLE // 2
        shown = ranked[:half] + ranked[-half:]
        caption += f". The table lists the {half} largest and the {half} smallest"
        step = -(-len(ranked) // MAX_COLUMNS)
        chart = charts.columns(
            [float(counts[label]) for label in ranked[::step]],
            title="Class balance: samples of each class, largest first",
            unit="samples",
            what="rank of the class" if step == 1 else f"rank of the class, divided by {step}",
        )
    rows = (
        (names[label] if label < len(names) else f"label {label}", float(counts[label]), f"{counts[label]:,}")
        for label in shown
    )
    table = bar_table(rows, caption=caption, head=("class", "samples"))
    charted = f'<div class="charts">{chart}</div>' if chart else ""
    return f"<h3>Class balance</h3>{charted}{table}"


def _sizes(opened: OpenSplit, charts: Charts) -> str:
    index = opened.index
    height, width = index["height"].astype(np.float64), index["width"].astype(np.float64)
    bits = 8.0 * index["length"] / (height * width)
    figures, text = [], ""
    if (height == height[0]).all() and (width == width[0]).all():
        text = f"<p>Every picture is {int(width[0])} × {int(height[0])} pixels.</p>"
    else:
        figures = [
            charts.histogram(width, title="Widths of the pictures", unit="pixels", whole=True),
            charts.histogram(height, title="Heights of the pictures", unit="pixels", whole=True),
            charts.histogram(
                np.log2(width / height),
                title="Shapes: portrait left, landscape right",
                unit="log2 of width over height",
            ),
        ]
    figures.append(charts.histogram(bits, title="Bits spent on a picture", unit="bits per pixel"))
    figures.append(charts.histogram(index["length"].astype(np.float64) / 1000, title="Packed latents", unit="kB"))
    return f'{text}<div class="charts">{"".join(figures)}</div>'


def _channels(opened: OpenSplit, charts: Charts) -> str:
    spec, statistics = opened.manifest.codec, opened.record.statistics
    entropy = statistics.entropy_bits
    num_values = sum(map(sum, statistics.counts))
    spent = 8.0 * float(opened.index["length"].astype(np.int64).sum()) / max(1, num_values)
    per_pixel = sum(entropy) / spec.cell_px**2
    low = min(bounds[0] for bounds in statistics.bounds)
    high = max(bounds[1] for bounds in statistics.bounds)
    # At least a window around 0, or a split of flat pictures would have no axis.
    low, high = min(low, -8), max(high, 8)
    panels = "".join(
        charts.channel(
            counts,
            index=i,
            low=low,
            high=high,
            facts=f"mean {_signed(mean)}, deviation {std:.1f}, entropy {bits:.2f} bits",
        )
        for i, (counts, mean, std, bits) in enumerate(
            zip(statistics.counts, statistics.mean, statistics.std, entropy, strict=True)
        )
    )
    compare = charts.columns(
        entropy,
        title="Entropy of each channel, and the bits that WebP spends",
        unit="bits per value",
        what="channel",
        line=spent,
        line_text=f"WebP spends {spent:.2f} bits per value",
    )
    # WebP sees neighbours, and each small picture brings its own code tables: either may weigh more.
    why = (
        "as it also uses what neighbours have in common"
        if spent < sum(entropy) / len(entropy)
        else "with code tables of its own in every picture"
    )
    return (
        f"<p>How often each integer occurs in each channel, over all {num_values:,} values; the vertical scale is "
        "logarithmic. A coder that knew these frequencies and nothing else would need "
        f"{sum(entropy) / len(entropy):.2f} bits per value ({per_pixel:.3f} bits per pixel); lossless WebP spends "
        f"{spent:.2f}, {why}. Unpacked, a value takes {spec.latent_bits} bits."
        f'</p><div class="panels">{panels}</div><div class="charts">{compare}</div>'
    )


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def _failures(opened: OpenSplit) -> str:
    total = opened.record.num_failures
    if not total:
        return "<h3>Failures</h3><p>Every picture of the source was encoded.</p>"
    failures, reasons = read_failures(opened.store, opened.split)
    rows = "".join(
        f'<tr><td class="num">{escape(index)}</td><td><bdi>{escape(name)}</bdi></td>'
        f"<td><bdi>{escape(reason)}</bdi></td></tr>"
        for index, name, reason in failures
    )
    if failures:
        head = '<th scope="col" class="num">source index</th><th scope="col">picture</th><th scope="col">reason</th>'
        table = _folded(f"The first {len(failures):,}", "Pictures that could not be encoded", head, rows)
    else:
        table = f"<p>They are listed in failures/{escape(opened.split)}.jsonl, which is not here.</p>"
    counted = bar_table(
        ((reason, float(n), f"{n:,}") for reason, n in reasons),
        caption=f"{total:,} pictures of the source could not be encoded",
        head=("reason", "pictures"),
    )
    return f"<h3>Failures</h3>{counted}{table}"


def _speed(opened: OpenSplit) -> str:
    runs, stages = read_runs(opened.store, opened.split)
    if not runs:
        return ""
    rows = "".join(
        f'<tr><td class="num">{i}</td><td class="num">{samples:,}</td><td class="num">{number(seconds)}</td>'
        f'<td class="num">{number(samples / seconds if seconds else 0.0)}</td></tr>'
        for i, (samples, seconds) in enumerate(runs, 1)
    )
    table = (
        '<table class="narrow"><caption>Runs of the conversion</caption><thead><tr><th scope="col" class="num">run</th>'
        '<th scope="col" class="num">samples</th><th scope="col" class="num">seconds</th>'
        f'<th scope="col" class="num">samples per second</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    total = sum(stages.values()) or 1.0
    times = bar_table(
        (
            (name, seconds, f"{number(seconds)} s, {100 * seconds / total:.0f} %")
            for name, seconds in sorted(stages.items(), key=lambda item: -item[1])
        ),
        caption="Where the time went, all workers together",
        head=("stage", "seconds"),
    )
    return f"<h3>Speed of the conversion</h3>{table}{times if stages else ''}"


def _checksums(record: SplitRecord) -> str:
    listed = record.shards[:MAX_SHARDS_LISTED]
    rows = "".join(
        f'<tr><td class="name">{escape(shard.name)}</td><td class="num">{shard.num_samples:,}</td>'
        f'<td class="num">{shard.num_bytes:,}</td><td class="mono">{escape(shard.sha256)}</td></tr>'
        for shard in listed
    )
    more = f"<p>The first {len(listed):,} of {len(record.shards):,}.</p>" if len(listed) < len(record.shards) else ""
    head = "".join(f'<th scope="col"{name}>{text}</th>' for text, name in _SHARD_COLUMNS)
    summary = f"{len(record.shards):,} shards, {picture_bytes(record.num_bytes)}"
    return f"<h3>Checksums</h3>{_folded(summary, 'Shards and their checksums', head, rows)}{more}"


def _folded(summary: str, label: str, head: str, rows: str) -> str:
    """Return a long table folded behind a line of summary; it scrolls by itself, with the keyboard too."""
    return (
        f'<details><summary>{escape(summary)}</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(label)}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
