"""Bytes of a picture on disk: the latent, what a shard adds to it, and the index.

    python -m benchmarks.stored_bytes --pictures wds:../shared/data/imagenette160-val.tar [--size 160]

Bytes only, no times: the numbers are the same on every machine.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import shown, write_results
from walloc_data.convert import encode_dataset
from walloc_data.format import SettingFields
from walloc_data.storage import Store, read_manifest

WAYS: dict[str, tuple[str | None, SettingFields]] = {
    "with labels": (None, {}),
    "without labels": ("none", {}),
    "with labels and sample_json": (None, {"sample_json": True}),
}


def measure(
    pictures: str, out: Path, *, label_column: str | None, size_px: int, fields: SettingFields
) -> dict[str, Any]:
    """Encode once, and count bytes a sample."""
    summary = encode_dataset(pictures, out, size_px=size_px, label_column=label_column, progress=False, **fields)
    record = read_manifest(Store(out)).splits["train"]
    index = (out / record.index_name("train")).stat().st_size
    number = summary.num_samples
    return {
        "samples": number,
        "source": summary.source_bytes / number,
        "latent": summary.webp_bytes / number,
        "shard": summary.shard_bytes / number,
        "beside_the_latent": (summary.shard_bytes - summary.webp_bytes) / number,
        "index": index / number,
    }


def main() -> None:
    """Measure and write benchmarks/results/stored_bytes.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", required=True, help="source, as for `walloc-data encode`")
    parser.add_argument("--size", type=int, default=160)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"size_px": arguments.size}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (label_column, fields) in WAYS.items():
            out = Path(scratch) / name.replace(" ", "-")
            results[name] = measure(
                arguments.pictures, out, label_column=label_column, size_px=arguments.size, fields=fields
            )
            print(name, results[name])
    location = f"wds:{Path(arguments.pictures.removeprefix('wds:')).name}"
    write_results("stored_bytes", results, arguments=shown(["--pictures", location, "--size", str(arguments.size)]))


if __name__ == "__main__":
    main()
