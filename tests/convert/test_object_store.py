"""Converting to and from a real object store (OpenStack Swift's S3 API), which is killed and started again midway."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.convert.conftest import StopError, as_bytes, hashes, make_folder, picture, store_steps
from tests.convert.test_fragments import write_tars
from tests.convert.test_killed import wait_for
from tests.test_sources import write_tar
from walloc_data import encode_dataset
from walloc_data.convert import dataset_info, decode_dataset, finish_dataset, overwrite, verify_dataset
from walloc_data.errors import SettingsMismatchError, SourceError, StorageError, UnreadableError
from walloc_data.sources import open_source
from walloc_data.storage import Store

pytestmark = pytest.mark.object_store

BUCKET = "converting"

Check = Callable[[Path], None]


@pytest.fixture(scope="module", autouse=True)
def bucket(make_bucket: Callable[[str], dict[str, Any]]) -> None:
    make_bucket(BUCKET)


@pytest.fixture(autouse=True)
def credentials(swift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials in the environment, as the ecosystem does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    """Fetch every file of a data set."""

    def fetch(url: str) -> Path:
        store, target = Store(url), tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        names = ["walloc.json", "README.md", "_info.json"]
        for folder in ("data", "index", "failures", "codec", ".walloc/train"):
            names += store.list(folder)
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            store.download(name, target / name)
        return target

    return fetch


@pytest.mark.slow
def test_a_data_set_in_a_bucket_has_the_bytes_of_one_on_disk(
    pictures: Path, same_as_reference: Check, copy_of: Callable[[str], Path], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/plain"
    summary = encode_dataset(pictures, url, samples_per_shard=5, progress=False)
    assert (summary.url, summary.num_samples) == (url, 24)
    same_as_reference(copy_of(url))
    assert verify_dataset(url, progress=False).problems == ()
    assert "train: 24 samples" in str(dataset_info(url))
    assert len(decode_dataset(url, tmp_path / "png", keys=["000000001"])) == 1
    assert encode_dataset(pictures, url, samples_per_shard=5, progress=False).new_samples == 0


def test_parts_in_a_bucket_join(pictures: Path, same_as_reference: Check, copy_of: Callable[[str], Path]) -> None:
    url = f"s3://{BUCKET}/parts"
    for part in ("2/2", "1/2"):
        encode_dataset(pictures, url, samples_per_shard=5, part=part, progress=False)
    assert dataset_info(url).unfinished == {"train": (5, 5)}
    finish_dataset(url)
    same_as_reference(copy_of(url))


@pytest.mark.slow
def test_an_overwrite_in_a_bucket_interrupted_among_its_writes_leaves_a_whole_split_and_nothing_of_the_old(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one write, where files are copied; tests/convert/test_overwrite.py stops at the others, on disk."""
    few = make_folder(tmp_path / "few" / "pictures", per_class=2)
    url = f"s3://{BUCKET}/interrupted"
    encode_dataset(pictures, url, samples_per_shard=8, progress=False)
    with monkeypatch.context() as patch:
        change = overwrite.publish_replacement

        def interrupted(store: Store, split: str, kind: Any) -> None:
            store_steps(patch, 9)
            change(store, split, kind=kind)

        patch.setattr("walloc_data.convert.encode.publish_replacement", interrupted)
        with pytest.raises(StopError):
            encode_dataset(few, url, samples_per_shard=4, overwrite=True, progress=False)
    report = verify_dataset(url, progress=False)
    assert (report.problems, report.num_samples) == ((), 6)
    finish_dataset(url)
    report = verify_dataset(url, progress=False)
    assert (report.problems, report.num_samples) == ((), 6)
    assert Store(url).list("data") == ["data/train-00000.tar", "data/train-00001.tar"]
    assert Store(url).list_folders(".walloc") == ["train"]


@pytest.mark.slow
def test_a_store_that_is_killed_and_started_again_costs_time_only(
    swift: Any, pictures: Path, same_as_reference: Check, copy_of: Callable[[str], Path]
) -> None:
    url = f"s3://{BUCKET}/outage"
    restarted: list[threading.Timer] = []

    def outage(progress: Any) -> None:
        if progress.num_done >= 10 and not restarted:
            swift.kill()
            restarted.append(threading.Timer(2.0, swift.start))
            restarted[0].start()

    encode_dataset(pictures, url, samples_per_shard=5, progress=outage)
    restarted[0].join()
    same_as_reference(copy_of(url))


@pytest.mark.slow
def test_a_store_that_stays_away_stops_the_run_which_resumes(
    swift: Any,
    pictures: Path,
    same_as_reference: Check,
    copy_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"s3://{BUCKET}/away"
    monkeypatch.setitem(Store.__init__.__kwdefaults__, "max_attempts", 2)

    killed: list[bool] = []

    def outage(progress: Any) -> None:
        if progress.num_done >= 10 and not killed:
            swift.kill()
            killed.append(True)

    with pytest.raises(StorageError, match=r"away/data/train-0000\d\.tar: failed 2 times"):
        encode_dataset(pictures, url, samples_per_shard=5, progress=outage)
    swift.start()
    assert 1 <= len(Store(url).list("data")) < 5
    assert not Store(url).exists("walloc.json")
    encode_dataset(pictures, url, samples_per_shard=5, progress=False)
    same_as_reference(copy_of(url))


@pytest.mark.slow
def test_tars_in_a_bucket_are_fragments_with_labels_and_class_names(tmp_path: Path) -> None:
    store = Store(f"s3://{BUCKET}/tars")
    for shard in range(2):
        members = []
        for number in range(3 * shard, 3 * shard + 3):
            members += [
                (f"{number:03d}.png", as_bytes(picture(number))),
                (f"{number:03d}.cls", str(number % 2).encode()),
            ]
        write_tar(tmp_path / f"in-{shard}.tar", members)
        store.publish(tmp_path / f"in-{shard}.tar", f"in-{shard}.tar")
    store.write_bytes("classnames.txt", b"ant\nbee\n")
    for spec in (f"wds:s3://{BUCKET}/tars/in-{{0..1}}.tar", f"wds:s3://{BUCKET}/tars/in-*.tar"):
        source = open_source(spec)
        assert (source.kind, source.num_fragments, source.class_names) == ("wds-remote", 2, ("ant", "bee"))
        assert [sample.label for sample in source.stream()] == [0, 1, 0, 1, 0, 1]
        assert [sample.data for sample in source.stream()] == [as_bytes(picture(number)) for number in range(6)]
    out = f"s3://{BUCKET}/from-tars"
    assert encode_dataset(spec, out, samples_per_shard=4, progress=False).num_samples == 6
    assert verify_dataset(out, progress=False).problems == ()
    with pytest.raises(SourceError, match=r"in-9\.tar"):
        open_source(f"wds:s3://{BUCKET}/tars/in-9.tar")
    with pytest.raises(SourceError, match="nothing matches"):
        open_source(f"wds:s3://{BUCKET}/tars/out-*.tar")


@pytest.mark.slow
def test_tars_in_a_bucket_are_fetched_once_each_and_after_a_kill_only_those_that_are_not_done(
    faults: Any, tmp_path: Path
) -> None:
    store = Store(f"s3://{BUCKET}/once")
    tars = range(5)
    for url in write_tars(tmp_path / "in", num=len(tars)):
        name = url.rpartition("/")[2]
        store.publish(tmp_path / "in" / name, name)
    command = ["-m", "walloc_data", "encode", f"wds:s3://{BUCKET}/once/{{0..4}}.tar"]
    options = ["--samples-per-shard", "2", "--no-preview"]
    environment = os.environ | {"AWS_ENDPOINT_URL": faults.url}

    def fetched() -> list[int]:
        # The heads of the first tar and of the last are looked at before.
        extra = {0: 1, 4: 1}
        return [faults.count(f"GET /{BUCKET}/once/{tar}.tar") - extra.get(tar, 0) for tar in tars]

    warm.run([*command, tmp_path / "whole", *options, "--workers", "2"], env=environment, check=True)
    assert fetched() == [1] * 5
    faults.requests.clear()
    work = tmp_path / "killed" / ".walloc" / "train"
    again = [*command, tmp_path / "killed", *options]
    process = warm.Popen(
        [*again, "--workers", "2"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(work.glob("*-end.json")) or process.poll() is not None, what="a first tar")
    process.kill()
    process.wait()
    done = {int(path.name.partition("-")[0]) for path in work.glob("*-end.json")}
    assert 1 <= len(done) <= 5
    assert all(number <= 1 for number in fetched())
    faults.requests.clear()
    warm.run(again, env=environment, check=True)
    assert sum(fetched()) == 5 - len(done)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_an_object_that_was_replaced_after_it_was_encoded_is_named(tmp_path: Path) -> None:
    store = Store(f"s3://{BUCKET}/replaced")

    def put(seed: int) -> None:
        """Six pictures of one length each; the second is another one for another seed."""
        members = [(f"{number:03d}.bmp", as_bytes(picture(number), "BMP")) for number in range(6)]
        members[1] = ("001.bmp", as_bytes(picture(seed), "BMP"))
        write_tar(tmp_path / "in.tar", members)
        store.publish(tmp_path / "in.tar", "in.tar")

    source, out = f"wds:s3://{BUCKET}/replaced/in.tar", tmp_path / "out"
    put(1)
    encode_dataset(source, out, samples_per_shard=3, part="1/2", progress=False)
    put(1)  # written again, the same bytes
    assert encode_dataset(source, out, samples_per_shard=3, progress=False).num_samples == 6
    put(9)
    with pytest.raises(
        SettingsMismatchError,
        match=r"encoded:\n  in\.tar/001: a tar with the ETag (\w+) -> a tar with the ETag (?!\1)\w+\n",
    ):
        encode_dataset(source, out, samples_per_shard=3, progress=False)
    found = verify_dataset(out, split="train", source=open_source(source), progress=False)
    assert [problem for problem in found.problems if "in.tar/001: a tar with the ETag" in problem]


def test_a_tar_that_arrives_cut_short_is_fetched_again_and_is_no_failure(
    faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"s3://{BUCKET}/short")
    for url in write_tars(tmp_path / "in", num=3):
        name = url.rpartition("/")[2]
        store.publish(tmp_path / "in" / name, name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    source = open_source(f"wds:s3://{BUCKET}/short/{{0..2}}.tar")  # looks at the first and the last
    faults.rules = [("short/1.tar", "short", 10**6)]
    with pytest.raises(UnreadableError, match=r"short/1\.tar: cannot be read \(\d+ of \d+ bytes arrived\)"):
        encode_dataset(source, tmp_path / "out", samples_per_shard=2, shuffle_seed=None, progress=False)
    faults.rules = [("short/1.tar", "short", 1)]
    summary = encode_dataset(source, tmp_path / "out", samples_per_shard=2, shuffle_seed=None, progress=False)
    assert faults.rules[0][2] == 0
    assert summary.num_failures == 0
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()


def test_refused_credentials_are_an_error_at_once(pictures: Path) -> None:
    wrong = {"key": "test:tester", "secret": "wrong"}
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/x"):
        encode_dataset(pictures, f"s3://{BUCKET}/x", storage_options=wrong, progress=False)
