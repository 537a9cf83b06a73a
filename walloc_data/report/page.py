"""The report: one self-contained HTML page on what is in a data set. No scripts, and nothing from the network.

Class names, names of pictures and reasons of failures are untrusted. The template escapes every value, and the page's
content security policy forbids scripts in any case. This module collects the values; `templates/report.html.j2` is the
page.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError, StorageError
from walloc_data.files import atomic_file
from walloc_data.format import Manifest, SplitRecord
from walloc_data.report.charts import Charts, bar_table, number, picture_bytes
from walloc_data.report.history import read_failures, read_runs
from walloc_data.report.pictures import class_pictures, walk_through
from walloc_data.report.samples import OpenSplit, open_split
from walloc_data.storage import DatasetLocation, open_store, read_manifest
from walloc_data.templating import render_html

__all__ = ["report"]

MAX_CLASSES_IN_TABLE = 40
MAX_COLUMNS = 400
MAX_SHARDS_LISTED = 2000


@renamed_arguments(out="dataset")
def report(
    dataset: DatasetLocation,
    target: str | os.PathLike[str],
    *,
    samples_per_class: int = 3,
    max_classes: int = 24,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file that describes a data set.

    It shows the codec and the settings, and for every split: class balance, sizes and shapes, bits per pixel, values
    and entropy of each latent channel, pictures of every class, failures with their reasons, the speed of the
    conversion (if its log is there) and checksums. The same data set gives the same page.

    Args:
        dataset: the data set.
        target: the file to write.
        samples_per_class: number of pictures to show of each class, at least 0.
        max_classes: number of classes to show pictures of, chosen at random if there are more, at least 0. A split
            without labels shows as many pictures as `samples_per_class` times this.
        storage_options: options of the file system of `dataset`.

    Raises:
        FormatError: no data set there, a damaged one, or a negative number.
        StorageError: the file cannot be written.

    Example:
        >>> from walloc_data.report import report
        >>> report("my-latents", "report.html")
        PosixPath('report.html')
    """
    for argument, value in (("samples_per_class", samples_per_class), ("max_classes", max_classes)):
        if value < 0:
            raise FormatError(f"{argument} must be at least 0, not {value}")
    store = open_store(dataset, storage_options)
    manifest = read_manifest(store)
    charts = Charts()
    name = store.url.rstrip("/").rpartition("/")[2]
    splits = []
    for split in manifest.splits:
        with open_split(store, split=split) as opened:
            splits.append(_split(opened, charts, per_class=samples_per_class, max_classes=max_classes))
    page = render_html(
        "report.html.j2",
        name=name,
        summary=_summary(manifest),
        tiles=_tiles(manifest),
        codec=_codec(manifest),
        splits=splits,
    )
    path = Path(target)
    try:
        with atomic_file(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the report could not be written ({error})") from error
    return path


def _summary(manifest: Manifest) -> str:
    spec = manifest.codec
    samples = sum(record.num_samples for record in manifest.splits.values())
    classes = f" of {len(manifest.class_names):,} classes" if manifest.class_names else ""
    return (
        f"{samples:,} pictures{classes}, each stored as a grid of {spec.latent_dim} small integers for every "
        f"{spec.cell_px} × {spec.cell_px} pixels: {spec.dimensionality_reduction:g} times fewer values than the "
        "picture has. Every picture below was decoded from its latent."
    )


def _tiles(manifest: Manifest) -> list[tuple[str, str]]:
    records = manifest.splits.values()
    return [
        ("samples", f"{sum(record.num_samples for record in records):,}"),
        ("splits", ", ".join(f"{split} {record.num_samples:,}" for split, record in manifest.splits.items())),
        ("shards", picture_bytes(sum(record.num_bytes for record in records))),
        ("not encoded", f"{sum(record.num_failures for record in records):,}"),
    ]


def _codec(manifest: Manifest) -> list[tuple[str, str]]:
    spec, settings = manifest.codec, manifest.settings
    order = "the source's" if settings.shuffle_seed is None else f"shuffled with seed {settings.shuffle_seed}"
    return [
        ("Codec", spec.name),
        ("Encoder", f"sha256 {spec.encoder_sha256}"),
        ("Transform", f"{spec.J} levels of {spec.wavelet} wavelet packets, then {spec.latent_dim} linear channels"),
        (
            "Values",
            f"{spec.latent_bits} bits, from {-(2 ** (spec.latent_bits - 1))} to {2 ** (spec.latent_bits - 1) - 1}",
        ),
        ("Pictures", settings.resized),
        ("Order", order),
        ("Mirrored latents", "stored too" if settings.mirror else "not stored"),
        ("Shards", f"{settings.samples_per_shard:,} samples each; WebP effort {settings.webp_effort}"),
        ("Under transparency", f"RGB {settings.background}"),
        ("Full brightness of 16-bit files", f"{65535 if settings.max_value is None else settings.max_value:,}"),
        ("Written by", ", ".join(f"{name} {version}" for name, version in sorted(manifest.written_by.items()))),
    ]


def _split(opened: OpenSplit, charts: Charts, *, per_class: int, max_classes: int) -> dict[str, object]:
    """Return the values that the template shows of a split."""
    record = opened.record
    samples = _samples(opened, charts, per_class=per_class, max_classes=max_classes) if record.num_samples else None
    return {
        "name": opened.split,
        "labelled": record.labelled,
        "facts": [*_source(record), ("Latents", _shape(record)), ("Labels", "yes" if record.labelled else "none")],
        "samples": samples,
        **_failures(opened),
        **_speed(opened),
        "shards": record.shards[:MAX_SHARDS_LISTED],
        "num_shards": len(record.shards),
        "shards_summary": f"{len(record.shards):,} shards, {picture_bytes(record.num_bytes)}",
    }


def _samples(opened: OpenSplit, charts: Charts, *, per_class: int, max_classes: int) -> dict[str, object]:
    codec, info = opened.load_codec()
    return {
        "strips": walk_through(opened, codec, info),
        "gallery": class_pictures(opened, codec, info, per_class=per_class, max_classes=max_classes),
        **(_classes(opened, charts) if opened.record.labelled else {}),
        **_sizes(opened, charts),
        **_channels(opened, charts),
    }


def _source(record: SplitRecord) -> list[tuple[str, str]]:
    names = {"kind": "Kind of source", "location": "Source", "num_items": "Pictures in it", "identity": "Its identity"}
    return [(text, str(record.source[key])) for key, text in names.items() if record.source.get(key) not in (None, "")]


def _shape(record: SplitRecord) -> str:
    if record.latent_shape is None:
        return "of several shapes"
    c, h, w = record.latent_shape
    return f"{c} × {h} × {w} each"


def _classes(opened: OpenSplit, charts: Charts) -> dict[str, object]:
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
    shown = ranked
    chart: Markup | None = None
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
    return {"class_chart": chart, "class_table": bar_table(rows, caption=caption, head=("class", "samples"))}


def _sizes(opened: OpenSplit, charts: Charts) -> dict[str, object]:
    index = opened.index
    height, width = index["height"].astype(np.float64), index["width"].astype(np.float64)
    bits = 8.0 * index["length"] / (height * width)
    figures, text = [], ""
    if (height == height[0]).all() and (width == width[0]).all():
        text = f"Every picture is {int(width[0])} × {int(height[0])} pixels."
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
    return {"size": text, "size_charts": figures}


def _channels(opened: OpenSplit, charts: Charts) -> dict[str, object]:
    spec, statistics = opened.manifest.codec, opened.record.statistics
    entropy = statistics.entropy_bits
    num_values = sum(map(sum, statistics.counts))
    spent = 8.0 * float(opened.index["length"].astype(np.int64).sum()) / max(1, num_values)
    per_pixel = sum(entropy) / spec.cell_px**2
    low = min(bounds[0] for bounds in statistics.bounds)
    high = max(bounds[1] for bounds in statistics.bounds)
    # At least a window around 0, or a split of flat pictures would have no axis.
    low, high = min(low, -8), max(high, 8)
    panels = [
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
    ]
    compare = charts.columns(
        entropy,
        title="Entropy of each channel, and the bits that WebP spends",
        unit="bits per value",
        what="channel",
        line=spent,
        line_text=f"WebP spends {spent:.2f} bits per value",
    )
    # WebP also predicts from neighbouring values, but stores code tables for every sample: either may weigh more.
    why = (
        "because it also uses the correlation of neighbouring values"
        if spent < sum(entropy) / len(entropy)
        else "because it stores code tables for every sample"
    )
    note = (
        f"How often each integer occurs in each channel, over all {num_values:,} values; the vertical scale is "
        "logarithmic. An entropy coder that uses only these frequencies would need "
        f"{sum(entropy) / len(entropy):.2f} bits per value ({per_pixel:.3f} bits per pixel); lossless WebP spends "
        f"{spent:.2f}, {why}. Unpacked, a value takes {spec.latent_bits} bits."
    )
    return {"channels_note": note, "channel_charts": panels, "entropy_chart": compare}


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def _failures(opened: OpenSplit) -> dict[str, object]:
    total = opened.record.num_failures
    if not total:
        return {"num_failures": 0}
    failures, reasons = read_failures(opened.store, opened.split, root=opened.record.root)
    counted = bar_table(
        ((reason, float(n), f"{n:,}") for reason, n in reasons),
        caption=f"{total:,} pictures of the source could not be encoded",
        head=("reason", "pictures"),
    )
    return {"num_failures": total, "failures": failures, "reasons": counted}


def _speed(opened: OpenSplit) -> dict[str, object]:
    runs, stages = read_runs(opened.store, opened.split)
    total = sum(stages.values()) or 1.0
    rows = (
        (name, seconds, f"{number(seconds)} s, {100 * seconds / total:.0f} %")
        for name, seconds in sorted(stages.items(), key=lambda item: -item[1])
    )
    table = bar_table(rows, caption="Time of each stage, summed over the workers", head=("stage", "seconds"))
    return {
        "runs": [
            (f"{samples:,}", number(seconds), number(samples / seconds if seconds else 0.0))
            for samples, seconds in runs
        ],
        "stages": table if stages else "",
    }
