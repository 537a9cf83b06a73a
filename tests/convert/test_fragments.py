"""Sources that are read in fragments: each once, by any worker; the same bytes however often it was interrupted."""

import json
import os
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.convert.conftest import Warm, as_bytes, hashes, picture
from tests.convert.test_killed import children_of, wait_for, workers_of
from tests.test_sources import write_tar
from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import dataset_info, finish_dataset, verify_dataset
from walloc_data.errors import ConversionError, SettingsMismatchError, SourceError
from walloc_data.sources import open_source
from walloc_data.sources.remote_tars import RemoteTars

NUM_TARS, PER_TAR = 5, 5
NUM = NUM_TARS * PER_TAR
ALL = [f"{tar}.tar" for tar in range(NUM_TARS)]


def write_tars(folder: Path, *, first: int = 0, num: int = NUM_TARS, per_tar: int = PER_TAR) -> list[str]:
    """Tars of labelled pictures, picture n with the label n % 7, and their URLs."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = []
    for tar in range(num):
        members: list[tuple[str, bytes | None]] = []
        for number in range(first + tar * per_tar, first + (tar + 1) * per_tar):
            members += [
                (f"{number:03d}.png", as_bytes(picture(number))),
                (f"{number:03d}.cls", str(number % 7).encode()),
                (f"{number:03d}.json", json.dumps({"number": number}).encode()),
            ]
        write_tar(folder / f"{tar}.tar", members)
        urls.append(f"file://{folder}/{tar}.tar")
    return urls


def remote(urls: list[str], **options: Any) -> RemoteTars:
    """Tars read as those in an object store are."""
    return RemoteTars(urls, location="wds:here", **options)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """25 pictures in five tars. Read-only by agreement."""
    return write_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="module")
def whole(tars: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tars` encoded by one undisturbed process, two samples a shard: three shards a tar."""
    out = tmp_path_factory.mktemp("whole") / "out"
    encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    return out


def test_every_tar_gives_shards_of_its_own_and_every_sample_its_place_in_the_source(whole: Path) -> None:
    assert sorted(path.name for path in (whole / "data").iterdir()) == [
        f"train-{unit:05d}-{number:03d}.tar" for unit in range(NUM_TARS) for number in range(3)
    ]
    report = verify_dataset(whole, progress=False)
    assert (report.problems, report.num_samples) == ((), NUM)
    rows = pq.read_table(whole / "index" / "train.parquet").to_pylist()
    assert sorted(row["source_index"] for row in rows) == list(range(NUM))
    assert all(row["label"] == row["source_index"] % 7 for row in rows)
    assert [row["source_index"] for row in rows] != list(range(NUM))  # the fragments are shuffled
    assert all(
        row["source_index"] // PER_TAR == rows[5 * (i // 5)]["source_index"] // PER_TAR for i, row in enumerate(rows)
    )
    assert rows[7]["key"] == "00001-0000002"
    dataset = LatentDataset(whole)
    assert sorted(label for _, label in dataset) == sorted(number % 7 for number in range(NUM))


def test_the_latents_are_those_of_the_same_tars_read_by_position(tars: list[str], whole: Path, tmp_path: Path) -> None:
    encode_dataset(open_source("wds:" + "::".join(tars)), tmp_path / "local", progress=False)
    ours, theirs = LatentDataset(whole), LatentDataset(tmp_path / "local")
    row_of = {int(number): row for row, number in enumerate(theirs.index["source_index"])}
    for row, number in enumerate(ours.index["source_index"].tolist()):
        assert np.array_equal(ours[row][0], theirs[row_of[number]][0])


def test_without_a_shuffle_fragments_keep_their_order(tars: list[str], tmp_path: Path) -> None:
    encode_dataset(remote(tars), tmp_path / "out", shuffle_seed=None, progress=False)
    index = pq.read_table(tmp_path / "out" / "index" / "train.parquet")["source_index"].to_pylist()
    assert index == list(range(NUM))


def test_parts_join_to_the_same_bytes(tars: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part in ("2/2", "1/2"):
        encode_dataset(remote(tars), out, samples_per_shard=2, part=part, progress=False)
        if part == "2/2":
            assert dataset_info(out).unfinished == {"train": (2, 5)}
            with pytest.raises(ConversionError, match="3 of 5 units of work of split 'train' are missing: 0, 2, 4"):
                finish_dataset(out)
    finish_dataset(out)
    assert hashes(out) == hashes(whole)


def test_a_stream_with_shards_of_its_own_is_read_shard_by_shard(tmp_path: Path) -> None:
    values = {
        "image": [{"bytes": as_bytes(picture(number)), "path": None} for number in range(11)],
        "label": [number % 2 for number in range(11)],
        "text": [f"caption {number}" for number in range(11)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    data = datasets.Dataset.from_dict(values, features=features)
    stream = data.to_iterable_dataset(num_shards=4)
    source = open_source(stream)
    assert (source.num_fragments, source.fragment_name(1)) == (4, "fragment 1 of 4")
    assert [sample.columns["text"] for sample in source.stream()] == values["text"]
    assert open_source(stream.take(5)).num_fragments == 1  # taken from each shard, they would be others
    assert len(list(open_source(stream.take(5)).stream())) == 5
    encode_dataset(data, tmp_path / "map", progress=False)
    summary = encode_dataset(stream, tmp_path / "stream", samples_per_shard=2, progress=False)
    assert (summary.num_samples, summary.num_shards) == (11, 7)  # of 3, 3, 3 and 2
    assert verify_dataset(tmp_path / "stream", progress=False).problems == ()
    ours, theirs = LatentDataset(tmp_path / "stream"), LatentDataset(tmp_path / "map")
    row_of = {int(number): row for row, number in enumerate(theirs.index["source_index"])}
    for row, number in enumerate(ours.index["source_index"].tolist()):
        assert np.array_equal(ours[row][0], theirs[row_of[number]][0])
        assert ours[row][1] == number % 2


def test_fragments_without_pictures_are_fine_and_a_source_without_any_is_an_error(tmp_path: Path) -> None:
    urls = write_tars(tmp_path / "in", num=3)
    write_tar(tmp_path / "in" / "1.tar", [])
    summary = encode_dataset(remote(urls), tmp_path / "out", progress=False)
    assert (summary.num_samples, summary.num_failures, summary.num_shards) == (10, 0, 2)
    report = verify_dataset(tmp_path / "out", progress=False)
    assert report.problems == ()
    empty = datasets.IterableDataset.from_generator(
        lambda: iter(()), features=datasets.Features({"image": datasets.Image()})
    )
    with pytest.raises(ConversionError, match="the source of split 'train' has no pictures"):
        encode_dataset(empty, tmp_path / "empty", progress=False)


def test_very_many_small_tars_share_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walloc_data.convert.plan.MIN_UNITS", 2)
    urls = write_tars(tmp_path / "in", num=7, per_tar=3)
    write_tar(tmp_path / "in" / "4.tar", [])
    out = tmp_path / "out"
    summary = encode_dataset(remote(urls), out, samples_per_shard=4, progress=False)
    assert summary.num_samples == 18
    assert {path.name.split("-")[1] for path in (out / "data").iterdir()} == {"00000", "00001", "00002"}
    assert verify_dataset(out, progress=False).problems == ()
    rows = pq.read_table(out / "index" / "train.parquet").to_pylist()
    # Picture n has the label n % 7; the fifth tar is empty, so that those after it move up by three.
    assert all(row["label"] == (row["source_index"] + 3 * (row["source_index"] >= 12)) % 7 for row in rows)
    assert sorted(row["source_index"] for row in rows) == list(range(18))


# Damage.


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def member_offset(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def test_a_damaged_tar_is_a_failure_of_its_own_and_the_rest_goes_on(tmp_path: Path) -> None:
    urls = write_tars(tmp_path / "in")
    in_middle = tmp_path / "in" / "1.tar"
    cut(in_middle, member_offset(in_middle, "008.cls") + 100)  # inside a header: 005, 006 and 007 are whole
    header = tmp_path / "in" / "3.tar"
    data = bytearray(header.read_bytes())
    data[member_offset(header, "017.png") + 150] ^= 255  # its checksum: 016 has all that 015 has
    header.write_bytes(data)
    (tmp_path / "in" / "4.tar").write_bytes(b"no tar at all" * 1000)
    out = tmp_path / "out"
    summary = encode_dataset(remote(urls), out, samples_per_shard=2, progress=False)
    assert (summary.num_samples, summary.num_failures) == (10 + 3 + 2, 3)
    lines = {line["name"]: line for line in map(json.loads, (out / "failures/train.jsonl").read_text().splitlines())}
    assert set(lines) == {"1.tar", "3.tar", "4.tar"}
    assert "not a readable tar, or damaged: no header at byte" in lines["1.tar"]["reason"]
    assert "Its last sample, '008', may have lost members" in lines["1.tar"]["reason"]
    assert "no header at byte" in lines["3.tar"]["reason"]
    assert lines["1.tar"]["source_index"] == PER_TAR + 3
    assert verify_dataset(out, progress=False).problems == ()
    with pytest.raises(ConversionError, match=r"tar .* damaged: .*\. Stopped because of on_error='stop'"):
        encode_dataset(remote(urls), tmp_path / "stop", on_error="stop", progress=False)
    with pytest.raises(ConversionError, match=r"3 pictures could not be encoded, more than max_failures=2"):
        encode_dataset(remote(urls), tmp_path / "few", max_failures=2, progress=False)


def test_labels_that_the_first_samples_lack_are_never_dropped(tmp_path: Path) -> None:
    plain = [(f"{number}.png", as_bytes(picture(number))) for number in range(20)]
    write_tar(tmp_path / "0.tar", plain)
    write_tar(tmp_path / "1.tar", [*plain, ("20.png", plain[0][1]), ("20.cls", b"1")])
    write_tar(tmp_path / "2.tar", [plain[0], plain[1], ("1.cls", b"1"), plain[2]])
    with pytest.raises(SourceError, match=r"2\.tar: 1 samples have a label \(\.cls\), but the first .* has none"):
        remote([f"file://{tmp_path}/2.tar"])
    later = remote([f"file://{tmp_path}/{number}.tar" for number in (0, 1)])
    assert not later.labelled
    with pytest.raises(SourceError, match=r"1\.tar: sample '20': 1 samples have a label"):
        encode_dataset(later, tmp_path / "out", progress=False)
    asked = remote([f"file://{tmp_path}/{number}.tar" for number in (0, 1)], label_column="none")
    assert encode_dataset(asked, tmp_path / "out", progress=False, overwrite=True).num_samples == 41


# Interruptions.


class Counting:
    """An HTTP server of tars that counts what it sends, as stores do not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.whole = folder, Counter[str](), Counter[str]()
        counting = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                path = counting.folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data, total = path.read_bytes(), path.stat().st_size
                asked = self.headers.get("Range")
                if asked:
                    first, last = asked.removeprefix("bytes=").split("-")
                    data = data[int(first) : int(last) + 1]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("ETag", f'"{hash(path.read_bytes())}"')
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    counting.sent[path.name] += len(data)
                    counting.whole[path.name] += not asked
                    self.wfile.write(data)

            do_GET = do_HEAD = answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Counting]:
    write_tars(tmp_path / "served")
    serving = Counting(tmp_path / "served")
    yield serving
    serving.close()


def data_of(out: Path) -> dict[str, str]:
    """Hashes of shards and index: the card and the manifest also tell of names and places."""
    return {name: value for name, value in hashes(out).items() if name.startswith(("data", "index"))}


def spec_of(server: Counting) -> str:
    return f"wds:{server.url}/{{0..{NUM_TARS - 1}}}.tar"


@pytest.mark.slow
def test_every_byte_is_fetched_once_by_several_workers(server: Counting, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(spec_of(server), out, samples_per_shard=2, workers=2, progress=False)
    assert server.whole == dict.fromkeys(ALL, 1)
    assert data_of(out) == data_of(whole)
    before = server.whole.copy()
    assert encode_dataset(spec_of(server), out, samples_per_shard=2, workers=2, progress=False).new_samples == 0
    assert server.whole == before


@pytest.mark.slow
def test_killed_and_resumed_only_unfinished_tars_are_fetched_again(
    warm: Warm, server: Counting, tmp_path: Path
) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    encode_dataset(spec_of(server), reference, samples_per_shard=2, progress=False)
    work = out / ".walloc" / "train"
    for number in (1, 2, 4):
        server.whole.clear()
        process = warm.begin(spec_of(server), out, samples_per_shard=2, workers=1 + number % 2)
        wait_for(lambda number=number: len(list(work.glob("*-end.json"))) >= number, what="an end mark")
        for member in [*workers_of(process), *children_of(process), process]:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        warm.end()
        if (out / "walloc.json").exists():
            break
        assert max(server.whole.values(), default=0) <= 1  # none, if the run before made enough end marks
    ended = {int(path.name.split("-")[0]) for path in work.glob("*-end.json")}
    server.whole.clear()
    encode_dataset(spec_of(server), out, samples_per_shard=2, workers=2, progress=False)
    assert sum(server.whole.values()) == NUM_TARS - len(ended)
    assert hashes(out) == hashes(reference)


@pytest.mark.slow
def test_the_tar_of_a_killed_worker_is_read_by_another(warm: Warm, server: Counting, tmp_path: Path) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    encode_dataset(spec_of(server), reference, samples_per_shard=2, progress=False)
    process = warm.begin(spec_of(server), out, samples_per_shard=2, workers=2)
    wait_for(lambda: list((out / "data").glob("*.tar")), what="a first shard")
    for child in workers_of(process)[:1]:
        os.kill(child, signal.SIGKILL)
    assert warm.end()[0] == 0
    assert hashes(out) == hashes(reference)


@pytest.mark.slow
def test_within_a_tar_only_the_shards_that_are_missing_are_made(tars: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    work = out / ".walloc" / "train"
    for name in ("00002-001.json", "00002-end.json"):  # as if killed before the second shard's mark
        (work / name).unlink()
    (out / "walloc.json").unlink()
    kept = {path.name: path.stat().st_ino for path in (out / "data").iterdir()}
    summary = encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    assert summary.new_samples == 2
    assert hashes(out) == hashes(whole)
    now = {path.name: path.stat().st_ino for path in (out / "data").iterdir()}
    assert {name for name in now if now[name] != kept[name]} == {"train-00002-001.tar"}


def test_a_tar_that_changed_under_its_shards_is_named(tmp_path: Path) -> None:
    urls, out = write_tars(tmp_path / "in", num=2), tmp_path / "out"
    encode_dataset(remote(urls), out, samples_per_shard=2, progress=False)
    (out / ".walloc" / "train" / "00000-end.json").unlink()
    source = remote(urls)
    for number in range(2):  # the same names and lengths
        path = tmp_path / "in" / f"{number}.tar"
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
    with pytest.raises(SettingsMismatchError, match=r"changed since it was encoded:\n  \d\.tar/00\d: its bytes differ"):
        encode_dataset(source, out, samples_per_shard=2, progress=False)
    problems = verify_dataset(out, split="train", source=source, progress=False).problems
    assert sorted(problem.split(": ")[1] for problem in problems) == ["0.tar/000", "1.tar/005"]


@pytest.mark.slow
def test_failures_in_a_tar_are_done_again_with_their_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls, out = write_tars(tmp_path / "in"), tmp_path / "out"
    members = [(f"{n:03d}.png", as_bytes(picture(n, width=400 if n == 6 else 48))) for n in range(5, 10)]
    write_tar(
        tmp_path / "in" / "1.tar", [m for name, data in members for m in ((name, data), (f"{name[:3]}.cls", b"1"))]
    )
    first = encode_dataset(remote(urls), out, samples_per_shard=2, max_pixels=3000, progress=False)
    assert (first.num_samples, first.num_failures) == (24, 1)
    kept = {path.name: path.stat().st_ino for path in (out / "data").iterdir()}
    second = encode_dataset(
        remote(urls), out, samples_per_shard=2, max_pixels=30_000, retry_failures=True, progress=False
    )
    assert (second.num_samples, second.num_failures) == (25, 0)
    changed = {path.name for path in (out / "data").iterdir() if kept[path.name] != path.stat().st_ino}
    assert len(changed) == 1
    assert verify_dataset(out, progress=False).problems == ()


@pytest.mark.slow
def test_a_damaged_shard_of_a_tar_is_repaired(tars: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    shard = out / "data" / "train-00003-001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (out / ".walloc" / "train" / "00001-end.json").write_text("{}")
    summary = encode_dataset(remote(tars), out, samples_per_shard=2, repair=True, progress=False)
    assert summary.new_samples == 2
    assert hashes(out) == hashes(whole)


@pytest.mark.slow
def test_overwriting_goes_from_fragments_to_positions_and_back(
    tars: list[str], pictures: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    encode_dataset(pictures, out, samples_per_shard=9, overwrite=True, progress=False)
    assert sorted(path.name for path in (out / "data").iterdir()) == [f"train-0000{n}.tar" for n in range(3)]
    assert verify_dataset(out, progress=False).problems == ()
    encode_dataset(remote(tars), out, samples_per_shard=2, overwrite=True, progress=False)
    assert data_of(out) == data_of(whole)


# What earlier versions have begun.


def as_old_stream(out: Path, *, finished: bool) -> None:
    """Make a split that was encoded in order, by position, what earlier versions made of a stream."""
    work = out / ".walloc" / "train"
    plan = json.loads((work / "plan.json").read_text())
    number = plan["source"]["num_items"]
    plan["source"] |= {"num_items": None, "kind": "wds-stream"}
    (work / "plan.json").write_text(json.dumps(plan))
    if finished:
        (work / "end.json").write_text(json.dumps({"num_items": number}))
    else:
        (out / "walloc.json").unlink()


@pytest.mark.slow
def test_a_finished_stream_of_an_earlier_version_is_verified_joined_and_overwritten(
    tars: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_dataset("wds:" + "::".join(tars), out, samples_per_shard=2, shuffle_seed=None, progress=False)
    as_old_stream(out, finished=True)
    assert verify_dataset(out, progress=False).problems == ()
    assert verify_dataset(out, split="train", source=remote(tars), progress=False).problems == ()
    assert finish_dataset(out)["train"].num_samples == NUM
    with pytest.raises(SettingsMismatchError, match=r"was begun differently:(.|\n)*--overwrite"):
        encode_dataset(remote(tars), out, samples_per_shard=2, shuffle_seed=None, progress=False)
    encode_dataset(remote(tars), out, samples_per_shard=2, shuffle_seed=0, overwrite=True, progress=False)
    assert data_of(out) == data_of(whole)


@pytest.mark.slow
def test_an_unfinished_stream_of_an_earlier_version_is_refused_in_one_sentence(
    tars: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_dataset("wds:" + "::".join(tars), out, samples_per_shard=2, shuffle_seed=None, progress=False)
    as_old_stream(out, finished=False)
    refusal = "started by an earlier version, as a stream, and is not finished: .* Overwrite the split"
    with pytest.raises(SettingsMismatchError, match=refusal):
        encode_dataset(remote(tars), out, samples_per_shard=2, progress=False)
    with pytest.raises(SettingsMismatchError, match=refusal):
        finish_dataset(out)
    assert "started by an earlier version as a stream" in str(dataset_info(out))
    encode_dataset(remote(tars), out, samples_per_shard=2, shuffle_seed=0, overwrite=True, progress=False)
    assert data_of(out) == data_of(whole)
