"""The data set card: README.md with the YAML by which the Hugging Face Hub and `datasets` find the splits."""

from walloc_data.format import Manifest

__all__ = ["render_card"]


def render_card(manifest: Manifest) -> str:
    """A minimal valid card; a function of the manifest alone."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in sorted(manifest.splits):
        lines += [f"  - split: {split}", f"    path: data/{split}-*.tar"]
    lines += ["tags:", "- walloc", "---", "", "# WaLLoC latents", ""]
    lines.append(
        f"Encoded by walloc_data with the codec {manifest.codec.name} "
        f"({manifest.codec.dimensionality_reduction:g}x fewer values than the pictures)."
    )
    lines.append("")
    for split, record in sorted(manifest.splits.items()):
        lines.append(
            f"- {split}: {record.num_samples} samples in {len(record.shards)} shards, {record.num_bytes} bytes, "
            f"{record.num_failures} pictures that could not be encoded"
        )
    return "\n".join(lines) + "\n"
