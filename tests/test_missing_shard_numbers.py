"""A shard whose pictures were all broken has no file: every place that names shards skips its number."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import make_folder
from walloc_data import LatentDataset, encode_dataset
from walloc_data.card import shard_urls
from walloc_data.convert import verify_dataset
from walloc_data.interop import unpack_picture, unpack_sample
from walloc_data.sources.wds import expand_urls

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of two pictures, of which 00001 has none."""
    source = make_folder(tmp_path_factory.mktemp("gap") / "in", classes=2, per_class=4)
    for number in (2, 3):
        (source / "class_0" / f"{number:03d}.jpg").write_text("broken")
    out = source.parent / "NAME"
    summary = encode_dataset(source, out, samples_per_shard=2, shuffle_seed=None, size_px=32, progress=False)
    assert (summary.num_shards, summary.num_failures) == (3, 2)
    return out


NAMES = ["data/train-00000.tar", "data/train-00002.tar", "data/train-00003.tar"]


def test_every_list_of_shards_names_the_files_that_are_there(gapped: Path) -> None:
    assert sorted(str(path.relative_to(gapped)) for path in gapped.glob("data/*")) == NAMES
    assert [shard.name for shard in LatentDataset(gapped).record.shards] == NAMES
    assert json.loads((gapped / "_info.json").read_text())["splits"]["train"]["filenames"] == NAMES
    wids = json.loads((gapped / "index" / "train.wids.json").read_text())
    assert [shard["url"] for shard in wids["shardlist"]] == [f"../{name}" for name in NAMES]
    assert verify_dataset(gapped, progress=False).problems == ()


def test_the_cards_webdataset_line_reads_every_sample(
    gapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webdataset

    shutil.copytree(gapped, tmp_path / "NAME")
    monkeypatch.chdir(tmp_path)
    found = re.search(r'webdataset\.WebDataset\("([^"]+)"', (gapped / "README.md").read_text())
    assert found is not None
    assert found[1] == "NAME/data/train-00000.tar::NAME/data/train-{00002..00003}.tar"
    samples = list(webdataset.WebDataset(found[1], shardshuffle=False).map(unpack_sample))
    assert [label for _, label in samples] == [0, 0, 1, 1, 1, 1]


@pytest.mark.slow
def test_wids_timm_and_datasets_read_every_sample(
    gapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wids = pytest.importorskip("wids")
    from datasets import load_dataset
    from timm.data import create_dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listed = wids.ShardListDataset(
        str(gapped / "index" / "train.wids.json"), cache_dir=str(tmp_path), transformations=unpack_sample
    )
    assert [listed[index][1] for index in range(len(listed))] == [0, 0, 1, 1, 1, 1]
    timm: Any = create_dataset("wds/latents", root=str(gapped), split="train", transform=unpack_picture)
    assert [label for _, label in timm] == [0, 0, 1, 1, 1, 1]
    rows = load_dataset(str(gapped), split="train", cache_dir=str(tmp_path))
    assert list(rows["cls"]) == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (["00000"], "x/t-00000.tar"),
        (["00000", "00001", "00002"], "x/t-{00000..00002}.tar"),
        (["00001", "00003", "00004", "00009"], "x/t-00001.tar::x/t-{00003..00004}.tar::x/t-00009.tar"),
        (["99998", "99999", "100000", "100001"], "x/t-{99998..99999}.tar::x/t-{100000..100001}.tar"),
    ],
)
def test_ranges_expand_to_exactly_the_names_in_webdataset_and_in_our_sources(numbers: list[str], text: str) -> None:
    import webdataset

    names = [f"t-{number}.tar" for number in numbers]
    assert shard_urls(names, prefix="x/") == text
    assert webdataset.shardlists.expand_urls(text) == [f"x/{name}" for name in names]
    assert expand_urls(text) == [f"x/{name}" for name in names]
