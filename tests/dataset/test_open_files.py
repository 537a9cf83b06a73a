"""Open shards under a limit of open files."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm
from walloc_data.errors import StorageError
from walloc_data.format import Manifest
from walloc_data.storage import OpenShards, ShardFile, max_open_shards

READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from walloc_data import LatentDataset
from walloc_data.storage import max_open_shards
assert max_open_shards() == 64
parts = [LatentDataset(sys.argv[1], shuffle=True, seed=seed, cache_folder=sys.argv[2]) for seed in (0, 1)]
for batch_size, num_workers in ((300, 0), (20, 0), (300, 1), (20, 1)):
    ids = [[], []]
    loaders = [part.loader(batch_size=batch_size, num_workers=num_workers) for part in parts]
    for batches in zip(*loaders):  # two data sets at once share one limit
        for seen, (latents, _) in zip(ids, batches):
            seen += ((latents[:, 0, 0, 0].int() & 255) + 256 * (latents[:, 0, 0, 1].int() & 255)).tolist()
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(300)), (batch_size, num_workers)
"""


@pytest.mark.slow
def test_more_shards_than_open_files_are_read(make_dataset: Callable[..., Manifest], tmp_path: Path) -> None:
    """300 shards, 128 descriptors: in batches of a few shards, and of all of them at once."""
    make_dataset(tmp_path / "data set", num_samples=300, samples_per_shard=1)
    done = warm.run(["-c", READ, tmp_path / "data set", tmp_path / "cache"], timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_shards_take_half_of_the_descriptors_and_the_longest_unused_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (12, 4096))
    assert max_open_shards() == 6
    (tmp_path / "shard").write_bytes(b"12345")
    opened: list[str] = []

    def opening(name: str) -> Callable[[], ShardFile]:
        def open_shard() -> ShardFile:
            opened.append(name)
            return ShardFile(tmp_path / "shard", num_bytes=5, context="shard")

        return open_shard

    one, two = OpenShards(), OpenShards()
    for number in range(4):
        one.get(number, opening(f"one {number}"))
    one.get(0, opening("one 0 again"))
    for number in range(4):
        two.get(number, opening(f"two {number}"))
    links = [link for link in Path("/proc/self/fd").iterdir() if link.resolve() == tmp_path / "shard"]
    assert len(links) == 6
    assert (len(one), len(two)) == (2, 4)
    assert one.get(0, opening("one 0 again")).read(0, 5) == b"12345"
    assert one.get(3, opening("one 3 again")).read(0, 5) == b"12345"
    assert opened == [f"{name} {number}" for name in ("one", "two") for number in range(4)]
    kept = two.get(0, opening("two 0 again"))
    for number in range(6):
        one.get(10 + number, opening("more"))
    assert len(two) == 0
    assert kept.read(0, 5) == b"12345"  # closed only when nobody holds it


def test_a_process_without_descriptors_is_told_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"12345")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = OpenShards()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StorageError, match=r"too many open files to open a shard .*`ulimit -n`"):
            shards.get(0, lambda: ShardFile(tmp_path / "shard", num_bytes=5, context="shard"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
