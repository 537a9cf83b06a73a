"""The Ray engine, on a real cluster of several nodes on this machine, one of which goes away midway."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tests.convert.conftest import as_bytes, hashes, make_folder, picture
from walloc_data import encode_dataset
from walloc_data.errors import MissingExtraError
from walloc_data.sources import open_source

# In a process of its own: Ray starts threads and a dozen processes, and warns about the Python it is run by.
SCRIPT = """
import ray, sys
from ray.cluster_utils import Cluster
from walloc_data import encode_dataset
from walloc_data.errors import ConversionError
from walloc_data.sources import open_source

source, out, broken, parquet = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1)]
cluster.wait_for_nodes()
removed = []

def remove_a_node(progress):
    if progress.num_done >= 6 and not removed:
        removed.append(nodes.pop())
        cluster.remove_node(removed[0], allow_graceful=False)

summary = encode_dataset(
    source, out, samples_per_shard=3, engine="ray", address=cluster.address, workers=2, progress=remove_a_node
)
ray.init(address=cluster.address, log_to_driver=False)  # from here on the script's own connection serves
print("removed", len(removed), "made", summary.new_samples, summary.num_failures)
stream = open_source(f"parquet:{parquet}/*.parquet", streaming=True)
summary = encode_dataset(
    stream, out + "-stream", samples_per_shard=2, engine="ray", workers=2, progress=False
)
print("streamed", stream.num_fragments, summary.num_samples, summary.num_shards)
try:
    encode_dataset(broken, out + "-stop", engine="ray", on_error="stop", progress=False)
except ConversionError as error:
    print("stopped", error)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_goes_away_midway_changes_no_byte(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = make_folder(tmp_path / "in", classes=3, per_class=12)
    encode_dataset(source, tmp_path / "reference", samples_per_shard=3, progress=False)
    broken = make_folder(tmp_path / "broken", classes=1, per_class=1)
    (broken / "class_0" / "x.jpg").write_text("broken")
    parquet = write_parquet(tmp_path / "parquet")
    encode_dataset(
        open_source(f"parquet:{parquet}/*.parquet", streaming=True),
        tmp_path / "reference-stream",
        samples_per_shard=2,
        progress=False,
    )
    script = tmp_path / "on_ray.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, script, source, tmp_path / "out", broken, parquet],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "removed 1 made 36 0" in result.stdout
    assert "stopped class_0/x.jpg (source index 1): not a picture in a supported format. Stopped" in result.stdout
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")
    assert "streamed 3 9 6" in result.stdout
    assert hashes(tmp_path / "out-stream") == hashes(tmp_path / "reference-stream")


def write_parquet(folder: Path) -> Path:
    """Three files of three pictures."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for file in range(3):
        images = [{"bytes": as_bytes(picture(3 * file + number)), "path": None} for number in range(3)]
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(folder / f"{file}.parquet")
    return folder


def test_without_ray_the_extra_is_named(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtraError, match=r"engine='ray' needs the package 'ray': pip install 'walloc_data\[ray\]'"
    ):
        encode_dataset(pictures, tmp_path / "out", engine="ray", progress=False)
