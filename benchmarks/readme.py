"""Fill the README's tables from benchmarks/results/: `python -m benchmarks.readme`, or `--check` to compare only.

Each table stands between `<!-- NAME -->` and `<!-- end NAME -->`; a function below makes it from a file of
results. So no number in the README was typed by hand, and a test holds the two together.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def times(value: dict[str, float]) -> str:
    """A ratio with its spread."""
    return f"{value['median']:.1f}x ({value['min']:.1f} to {value['max']:.1f})"


def encode_speed(results: dict[str, Any]) -> str:
    """Picture in memory to WebP bytes, one thread."""
    rows = []
    for pictures, name in (("kodak_768x512", "Kodak, 768x512"), ("crops_256_in_sixteens", "256-px crops, in sixteens")):
        for way, label in (("reference", "`walloc` 1.2.1"), ("default", "ours"), ("fast", "ours, `--effort fast`")):
            found = results[pictures][way]
            rows.append(
                (
                    f"{name}: {label}",
                    f"{found['ms_per_picture']['median']:.2f}",
                    times(found["times_faster"]),
                    f"{100 * (found['bytes_against_reference'] - 1):+.2f} %",
                )
            )
    return table(("pictures", "ms a picture", "times faster (spread)", "bytes"), rows)


def read_speed(results: dict[str, Any]) -> str:
    """Samples into shuffled training batches, per second of processor time."""
    labels = {
        "webdataset_jpeg": "webdataset: JPEG, Pillow, RandomResizedCrop(224)",
        "datasets_jpeg": "Hugging Face datasets: the same",
        "streaming_jpeg": "mosaicml-streaming: the same",
        "litdata_jpeg": "litdata: the same",
        "latents_webdataset": "our shards through webdataset",
        "latents_shards": "`LatentDataset`, from shards",
        "latents_array": '`LatentDataset(cache="array")`',
    }
    rows = []
    for name, label in labels.items():
        found = results["pipelines"][name]
        rows.append((label, f"{found['samples_per_cpu_second']['median']:,.0f}", times(found["times_webdataset_jpeg"])))
    return table(("256-px pictures", "samples / CPU second", "against webdataset (spread)"), rows)


def stored_bytes(results: dict[str, Any]) -> str:
    """What one 256-px picture costs on disk."""
    found = results["bytes_per_sample"]
    labels = {
        "raw_pixels_uint8": "raw pixels",
        "jpeg_q90": "JPEG, quality 90",
        "decoded_array": "decoded latents (the array cache)",
        "shard": "shard: WebP latent, label, JSON, tar headers",
        "webp_in_shard": "of which the WebP latent",
    }
    return table(("256-px pictures", "bytes each"), [(label, f"{found[name]:,.0f}") for name, label in labels.items()])


# Name in the README: (results file, function).
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "encode_speed": ("encode_speed", encode_speed),
    "read_speed": ("read_speed", read_speed),
    "stored_bytes": ("read_speed", stored_bytes),
}


def fill(text: str) -> str:
    """The README's text with every table made anew."""
    for name, (file, make) in TABLES.items():
        value = json.loads((RESULTS / f"{file}.json").read_text())
        body = f"<!-- {name} -->\n{make(value['results'])}\n\n`{value['command']}`\n<!-- end {name} -->"
        pattern = re.compile(rf"<!-- {name} -->.*?<!-- end {name} -->", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for {name}")
        text = pattern.sub(lambda _, body=body: body, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Fill, or with --check exit 1 where the README is behind its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    before = README.read_text()
    after = fill(before)
    if parser.parse_args().check:
        sys.exit("README.md is behind benchmarks/results: python -m benchmarks.readme" if before != after else 0)
    README.write_text(after)


if __name__ == "__main__":
    main()
