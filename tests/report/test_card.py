"""The card that a conversion writes: valid for the Hub, true for the readers it names, kind to what people edit."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from walloc_data.card import render_card, write_card
from walloc_data.convert import encode_dataset
from walloc_data.format import Manifest
from walloc_data.report import add_preview
from walloc_data.storage import Store


def manifest_of(out: Path) -> Manifest:
    return Manifest.from_json((out / "walloc.json").read_text(), context="test")


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.S)


def test_the_card_of_a_conversion_has_valid_metadata(imagenette_latents: Any) -> None:
    data = DatasetCard((imagenette_latents.out / "README.md").read_text()).data.to_dict()
    assert data["license"] == "other"
    assert data["license_name"] == "unknown"
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["image-classification"]
    assert "webdataset" in data["tags"]
    assert data["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": ["data/train-[0-9][0-9][0-9][0-9][0-9].tar"]}],
        }
    ]


def test_unlabelled_pictures_are_no_classification_task(kodak_latents: Any) -> None:
    card = (kodak_latents.out / "README.md").read_text()
    assert "task_categories" not in DatasetCard(card).data.to_dict()
    assert "create_latent_model" not in card


# webdataset leaves a shard open when its reader is not read to the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_block_of_code_runs(imagenette_latents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(imagenette_latents.out, tmp_path / "NAME")
    code = blocks((tmp_path / "NAME" / "README.md").read_text())
    assert len(code) == 5
    for block in code:
        assert len([line for line in block.splitlines() if line]) <= 6
        here = block.replace("hf://datasets/OWNER/NAME", "NAME").replace("OWNER/NAME", "NAME")
        names: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(here, "README.md", "exec"), names)
        if "latent" in names:
            assert tuple(names["latent"].shape) == (12, 12, 12)
            assert str(names["latent"].dtype).endswith("int8")
        elif "logits" in names:
            assert tuple(names["logits"].shape) == (8, 11)
        else:
            assert len(names["index"]) == 43


def test_similar_names_of_splits_do_not_mix(imagenette_latents: Any, tmp_path: Path) -> None:
    """`train-*` would give the split train the shards of train-extra as well."""
    import datasets

    out = tmp_path / "NAME"
    few = tmp_path / "few"
    for path in sorted(imagenette_latents.source.rglob("*.JPEG"))[:6]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    encode_dataset(few, out, split="train", samples_per_shard=4, size_px=32, progress=False)
    encode_dataset(few, out, split="train-extra", samples_per_shard=4, size_px=32, progress=False)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "train_extra": 6}
    assert loaded["train"][0]["webp"].size == (8, 8)


def test_what_a_person_wrote_stays(imagenette_latents: Any) -> None:
    manifest = manifest_of(imagenette_latents.out)
    card = render_card(manifest)
    assert render_card(manifest, previous=card) == card
    edited = (
        re.sub(r"license: other.*\nlicense_name: unknown\n", "license: cc0-1.0\nlanguage:\n- en\n", card)
        .replace("n<1K", "1M<n<10M")
        .replace("\n<!-- walloc_data: written", "\nMine, before.\n\n<!-- walloc_data: written")
        .replace("## Licence", "## Changed")
    ) + "\nMine, after.\n"
    again = render_card(manifest, previous=edited, preview=True)
    data = DatasetCard(again).data.to_dict()
    assert (data["license"], data["language"], data["size_categories"]) == ("cc0-1.0", ["en"], ["n<1K"])
    assert "license_name" not in data
    assert "Mine, before.\n\n<!--" in again
    assert again.endswith("\nMine, after.\n")
    assert "## Licence" in again
    assert "## Changed" not in again
    assert render_card(manifest, previous=again, preview=True) == again


def test_a_card_without_our_marks_is_a_persons_own(imagenette_latents: Any) -> None:
    manifest = manifest_of(imagenette_latents.out)
    again = render_card(manifest, previous="# All mine\n\n---\n\nA rule.\n")
    assert again.endswith("---\n\n# All mine\n\n---\n\nA rule.\n")
    assert DatasetCard(again).data.to_dict()["license"] == "other"


def test_hostile_names_are_text_in_the_card(imagenette_latents: Any) -> None:
    card = (imagenette_latents.out / "README.md").read_text()
    assert r"&lt;img src=x onerror=" in card
    assert "<img" not in card


def test_the_card_shows_the_preview_where_there_is_one(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    assert "<!-- walloc_data: preview -->" in (out / "README.md").read_text()
    add_preview(out, num_samples=1)
    shown = (out / "README.md").read_text()
    write_card(Store(out), manifest_of(out))
    assert (out / "README.md").read_text() == shown


@pytest.mark.parametrize(
    ("samples", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(
    samples: int, category: str, write_small_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    import dataclasses

    manifest = write_small_dataset(tmp_path, num_shards=1)
    [record] = manifest.splits.values()
    shards = (dataclasses.replace(record.shards[0], num_samples=samples),) if samples else ()
    record = dataclasses.replace(record, num_samples=samples, shards=shards)
    card = render_card(dataclasses.replace(manifest, splits={"train": record}))
    assert DatasetCard(card).data.to_dict()["size_categories"] == [category]


def test_a_path_of_this_machine_is_not_in_the_card(imagenette_latents: Any) -> None:
    card = (imagenette_latents.out / "README.md").read_text()
    assert "WaLLoC latents of source" in card
    assert str(imagenette_latents.source.parent) not in card
