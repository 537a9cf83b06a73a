"""Uploads: what goes, in which order, what is refused, and what a second run sends."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from walloc_data.codec import codec_folder
from walloc_data.errors import CodecError, CorruptShardError, FormatError, SettingsMismatchError, StorageError
from walloc_data.format import Manifest
from walloc_data.push import PushResult, push

# huggingface_hub's own way of sending a file, under the HTTP library that it uses.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Write = Callable[..., Manifest]
REPO = "me/latents"
ALL = [
    "data/train-00000.tar",
    "data/train-00001.tar",
    "data/train-00002.tar",
    "codec/codec.json",
    "codec/model.safetensors",
    "index/train.parquet",
    "_info.json",
    "README.md",
    "walloc.json",
]


def push_to(hub: Any, root: Path, **arguments: Any) -> PushResult:
    options = {"endpoint": hub.url, "token": "hf_test"}
    return push(root, f"hf://datasets/{REPO}", storage_options=options, **arguments)


def test_a_push_to_the_hub_sends_everything_and_the_manifest_last(
    hub: Any, tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path)
    seen: list[tuple[str, int, int]] = []
    result = push_to(hub, tmp_path, progress=lambda *step: seen.append(step))
    assert list(result.uploaded) == ALL
    assert hub.repos[REPO] == {name: (tmp_path / name).read_bytes() for name in ALL}
    assert "walloc.json" in hub.commits[-1]["added"]
    assert all("walloc.json" not in commit["added"] for commit in hub.commits[:-1])
    assert [path for path, _, _ in seen] == ALL
    assert seen[-1][1] == seen[-1][2] == result.num_bytes == sum((tmp_path / name).stat().st_size for name in ALL)


def test_work_files_and_what_the_manifest_does_not_name_stay_at_home(
    hub: Any, tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path)
    (tmp_path / "data" / "train-00007.tar").write_bytes(b"of another run")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "codec" / "passwd").symlink_to("/etc/passwd")
    result = push_to(hub, tmp_path)
    assert result.left_out == ("codec/passwd", "data/train-00007.tar", "notes.txt")
    assert sorted(hub.repos[REPO]) == sorted(ALL)


def test_a_dry_run_sends_nothing_and_says_what_would_go(hub: Any, tmp_path: Path, write_small_dataset: Write) -> None:
    write_small_dataset(tmp_path)
    result = push_to(hub, tmp_path, dry_run=True)
    assert result.dry_run
    assert list(result.uploaded) == ALL
    assert not hub.repos
    assert hub.puts == 0


def test_an_interrupted_push_is_unreadable_and_the_next_one_goes_on(
    hub: Any, tmp_path: Path, write_small_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walloc_data.push.targets._FILES_PER_COMMIT", 1)
    write_small_dataset(tmp_path)
    hub.refuse_puts_after = 2
    with pytest.raises(StorageError, match="run the same command to resume"):
        push_to(hub, tmp_path)
    assert sorted(hub.repos[REPO]) == ALL[:2]  # no manifest: nobody takes it for a data set
    hub.refuse_puts_after = None
    result = push_to(hub, tmp_path)
    assert result.unchanged == ("data/train-00000.tar", "data/train-00001.tar")
    assert sorted(hub.repos[REPO]) == sorted(ALL)
    assert hub.puts == 5  # three shards, the index and the codec's weights: each once


def test_a_second_push_of_the_same_data_set_sends_nothing(hub: Any, tmp_path: Path, write_small_dataset: Write) -> None:
    write_small_dataset(tmp_path)
    push_to(hub, tmp_path)
    commits = len(hub.commits)
    result = push_to(hub, tmp_path)
    assert result.uploaded == ()
    assert list(result.unchanged) == ALL
    assert len(hub.commits) == commits


@pytest.mark.slow
def test_a_data_set_that_grew_sends_only_what_is_new(hub: Any, tmp_path: Path, write_small_dataset: Write) -> None:
    write_small_dataset(tmp_path, num_shards=2)
    push_to(hub, tmp_path)
    write_small_dataset(tmp_path, num_shards=3)
    assert push_to(hub, tmp_path).uploaded == ("data/train-00002.tar", "index/train.parquet", "walloc.json")


@pytest.mark.slow
def test_another_data_set_at_the_destination_is_refused_and_replaced_only_when_asked(
    hub: Any, tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path / "one")
    write_small_dataset(tmp_path / "two", seed=1, num_shards=2)
    push_to(hub, tmp_path / "one")
    with pytest.raises(SettingsMismatchError, match=r"train-00000.tar is not the same shard.*--replace"):
        push_to(hub, tmp_path / "two")
    push_to(hub, tmp_path / "two", replace=True)
    assert hub.commits[-3]["deleted"] == ["walloc.json", "data/train-00002.tar"]
    manifest = Manifest.from_json(hub.repos[REPO]["walloc.json"], context="hub")
    assert [shard.name for shard in manifest.splits["train"].shards] == ALL[:2]
    assert "data/train-00002.tar" not in hub.repos[REPO]


def test_a_data_set_of_another_codec_is_refused_by_name(hub: Any, tmp_path: Path, write_small_dataset: Write) -> None:
    manifest = write_small_dataset(tmp_path / "one")
    push_to(hub, tmp_path / "one")
    write_small_dataset(tmp_path / "two", codec="rgb-16x-v1")
    with pytest.raises(SettingsMismatchError, match=f"its codec is klt-16x {manifest.codec.encoder_sha256[:12]}"):
        push_to(hub, tmp_path / "two")


def test_something_that_is_no_manifest_of_ours_is_not_overwritten(
    hub: Any, tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path)
    hub.repos[REPO] = {"walloc.json": b"[1, 2]"}
    with pytest.raises(SettingsMismatchError, match="expected a JSON object"):
        push_to(hub, tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_shard_stops_the_push_before_anything_is_sent(
    hub: Any, tmp_path: Path, write_small_dataset: Write, damage: str
) -> None:
    write_small_dataset(tmp_path)
    shard = tmp_path / "data" / "train-00001.tar"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data[:-1] if damage == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptShardError, match=r"train-00001\.tar: (the shard is missing|10239 bytes|sha256)"):
        push_to(hub, tmp_path)
    assert not hub.repos


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_the_remedy(hub: Any, tmp_path: Path, write_small_dataset: Write, status: int) -> None:
    write_small_dataset(tmp_path)
    hub.status = status
    with pytest.raises(StorageError, match=f"the Hub says {status}; log in with `hf auth login`"):
        push_to(hub, tmp_path)


def test_no_network_is_one_clear_error_without_the_token(
    tmp_path: Path, write_small_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_dataset(tmp_path)
    monkeypatch.setattr("walloc_data.push.targets._HUB_ATTEMPTS", 2)
    options = {"endpoint": "http://127.0.0.1:9", "token": "hf_secret"}
    message = r"hf://datasets/me/latents: looking for it: failed 2 times in \d s, last with ConnectError"
    with pytest.raises(StorageError, match=message) as caught:
        push(tmp_path, f"hf://datasets/{REPO}", storage_options=options)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "status"),
    [("/api/repos/create", 429), ("/tree/", 504), ("/commit/", 429), ("/api/datasets/me/latents", 504)],
)
def test_one_refusal_for_now_costs_a_push_only_time(
    hub: Any, tmp_path: Path, write_small_dataset: Write, part: str, status: int
) -> None:
    write_small_dataset(tmp_path)
    if part == "/tree/":
        hub.repos[REPO] = {}
    hub.faults = [(part, status, "1")]
    began = time.monotonic()
    assert list(push_to(hub, tmp_path).uploaded) == ALL
    assert hub.refused == 1
    assert time.monotonic() - began >= 1
    assert sorted(hub.repos[REPO]) == sorted(ALL)


def test_a_hub_that_asks_for_more_patience_than_a_push_has_is_quoted(
    hub: Any, tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path)
    hub.faults = [("/api/datasets/", 429, "3600")]
    with pytest.raises(StorageError, match=r"failed 1 times in 0 s.*it asks to wait 3600 s; run the same"):
        push_to(hub, tmp_path)
    assert not hub.repos


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_is_not_done_twice(hub: Any, tmp_path: Path, write_small_dataset: Write) -> None:
    write_small_dataset(tmp_path / "one")
    write_small_dataset(tmp_path / "two", seed=1, num_shards=2)
    push_to(hub, tmp_path / "one")
    hub.lost = ["/commit/"]
    push_to(hub, tmp_path / "two", replace=True)
    assert not hub.lost
    assert "data/train-00002.tar" not in hub.repos[REPO]
    assert hub.repos[REPO]["walloc.json"] == (tmp_path / "two" / "walloc.json").read_bytes()


def test_a_url_is_no_folder_to_push(tmp_path: Path, write_small_dataset: Write, hub: Any) -> None:
    with pytest.raises(
        StorageError, match=r"^s3://bucket/latents: push sends a folder of this machine, and this is a URL"
    ):
        push("s3://bucket/latents", "hf://datasets/me/latents")
    write_small_dataset(tmp_path)
    options = {"endpoint": hub.url, "token": "hf_test"}
    result = push(f"file://{tmp_path}", f"hf://datasets/{REPO}", storage_options=options, dry_run=True)
    assert list(result.uploaded) == ALL


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("hf://me/latents", "is named hf://datasets/OWNER/NAME"),
        ("hf://datasets/me/latents/sub", "is named hf://datasets/OWNER/NAME"),
        ("/tmp/elsewhere", "a folder on this machine can be copied as it is"),
    ],
)
def test_a_destination_that_is_none_is_explained(
    tmp_path: Path, write_small_dataset: Write, destination: str, message: str
) -> None:
    write_small_dataset(tmp_path)
    with pytest.raises(StorageError, match=message):
        push(tmp_path, destination)


def test_a_folder_without_a_manifest_or_an_index_is_not_pushed(tmp_path: Path, write_small_dataset: Write) -> None:
    with pytest.raises(FormatError, match=r"no walloc\.json here; push takes the local folder"):
        push(tmp_path, "s3://bucket/latents")
    write_small_dataset(tmp_path)
    (tmp_path / "index" / "train.parquet").unlink()
    with pytest.raises(FormatError, match="finish the conversion first"):
        push(tmp_path, "s3://bucket/latents")


def _index(root: Path) -> None:
    (root / "index" / "train.parquet").write_bytes(b"PAR1 and nothing else PAR1")


def _weights(root: Path) -> None:
    (root / "codec" / "model.safetensors").unlink()


def _codec(root: Path) -> None:
    folder = codec_folder("rgb-16x-v1")
    assert folder is not None
    shutil.rmtree(root / "codec")
    shutil.copytree(folder, root / "codec")


def _sample(root: Path) -> None:
    """A shard that was damaged before its record was made."""
    path = root / "data" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    manifest = json.loads((root / "walloc.json").read_text())
    manifest["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(data).hexdigest()
    (root / "walloc.json").write_text(json.dumps(manifest))


def _link(root: Path) -> None:
    path = root / "codec" / "model.safetensors"
    path.rename(root.parent / "elsewhere.safetensors")
    path.symlink_to(root.parent / "elsewhere.safetensors")


def _failures(root: Path) -> None:
    manifest = json.loads((root / "walloc.json").read_text())
    manifest["splits"]["train"]["num_failures"] = 3
    (root / "walloc.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_index, FormatError, r"index/train.parquet: not a parquet file, or cut short"),
        (_weights, CodecError, r"codec/model.safetensors: cannot be read \(No such file"),
        (_codec, CodecError, r"codec: this codec \(rgb-16x-v1, .* is not the one that made the latents \(klt-16x"),
        (
            _sample,
            CorruptShardError,
            r"train-00001.tar: sample 000000002: its bytes differ from those that were encoded",
        ),
        (_link, FormatError, r"codec/model.safetensors: a link to a file outside of the folder"),
        (_failures, FormatError, r"failures/train.jsonl: does not list the 3 failures of the manifest"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_readers_could_not_read_is_not_sent(
    hub: Any,
    tmp_path: Path,
    write_small_dataset: Write,
    damage: Callable[[Path], None],
    error: type[Exception],
    message: str,
    dry_run: bool,
) -> None:
    write_small_dataset(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(error, match=message):
        push_to(hub, tmp_path / "set", dry_run=dry_run)
    assert not hub.repos
    assert hub.puts == 0


def objects(url: str, options: dict[str, Any]) -> dict[str, bytes]:
    import fsspec

    fs = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return {path.removeprefix(f"{bucket}/{prefix}/"): fs.cat_file(path) for path in fs.find(bucket, prefix=prefix)}


@pytest.mark.object_store
def test_a_push_to_a_bucket_sends_everything_and_a_second_one_nothing(
    bucket: tuple[str, dict[str, Any]], tmp_path: Path, write_small_dataset: Write
) -> None:
    url, options = bucket[0] + "/plain/prefix", bucket[1]
    write_small_dataset(tmp_path)
    assert list(push(tmp_path, url, storage_options=options, dry_run=True).uploaded) == ALL
    assert not objects(url, options)
    assert list(push(tmp_path, url, storage_options=options).uploaded) == ALL
    assert objects(url, options) == {name: (tmp_path / name).read_bytes() for name in ALL}
    again = push(tmp_path, url, storage_options=options)
    assert again.uploaded == ()
    assert list(again.unchanged) == ALL


@pytest.mark.object_store
def test_an_interrupted_push_to_a_bucket_goes_on_and_replaces_what_differs(
    bucket: tuple[str, dict[str, Any]], tmp_path: Path, write_small_dataset: Write
) -> None:
    url, options = bucket[0] + "/again", bucket[1]
    write_small_dataset(tmp_path)

    class CutError(Exception):
        pass

    def cut(path: str, done: int, total: int) -> None:
        if path == ALL[1]:
            raise CutError

    with pytest.raises(CutError):
        push(tmp_path, url, storage_options=options, progress=cut)
    assert sorted(objects(url, options)) == ALL[:2]
    (tmp_path / "README.md").write_text("changed meanwhile")
    result = push(tmp_path, url, storage_options=options)
    assert list(result.uploaded) == ALL[2:]
    (tmp_path / "README.md").write_text("Changed meanwhile")  # as many bytes
    assert push(tmp_path, url, storage_options=options).uploaded == ("README.md", "walloc.json")
    assert objects(url, options)["README.md"] == b"Changed meanwhile"


@pytest.mark.object_store
def test_a_shard_that_was_sent_in_parts_is_recognised(
    bucket: tuple[str, dict[str, Any]],
    tmp_path: Path,
    write_small_dataset: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import s3fs.core

    part = 5 * 2**20
    monkeypatch.setattr("walloc_data.push.targets._S3_PART_BYTES", part)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: part)
    url, options = bucket[0] + "/parts", bucket[1]
    write_small_dataset(tmp_path)
    (tmp_path / "README.md").write_bytes(bytes(range(256)) * (11 * 2**20 // 256))
    push(tmp_path, url, storage_options=options)
    assert push(tmp_path, url, storage_options=options).uploaded == ()


@pytest.mark.slow
@pytest.mark.object_store
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_bucket_whose_etags_are_no_checksums_is_sent_nothing_twice(
    bucket: tuple[str, dict[str, Any]],
    kms: str,
    tmp_path: Path,
    write_small_dataset: Write,
    monkeypatch: pytest.MonkeyPatch,
    in_parts: bool,
) -> None:
    """As with encryption by KMS, where an ETag is as good as random."""
    url, options = bucket[0] + f"/kms-{in_parts}", bucket[1] | {"endpoint_url": kms}
    write_small_dataset(tmp_path)
    if in_parts:
        import s3fs.core

        monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)
        (tmp_path / "README.md").write_bytes(bytes(range(256)) * (11 * 2**20 // 256))
    assert list(push(tmp_path, url, storage_options=options).uploaded) == ALL
    assert push(tmp_path, url, storage_options=options).uploaded == ()
    (tmp_path / "README.md").write_bytes((tmp_path / "README.md").read_bytes().swapcase())
    assert push(tmp_path, url, storage_options=options).uploaded == ("README.md", "walloc.json")


@pytest.mark.object_store
def test_what_another_tool_has_uploaded_is_known_by_its_etag(
    bucket: tuple[str, dict[str, Any]], tmp_path: Path, write_small_dataset: Write
) -> None:
    import fsspec

    url, options = bucket[0] + "/copied", bucket[1]
    write_small_dataset(tmp_path)
    fs = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    for name in ALL:
        fs.put_file(str(tmp_path / name), f"{url}/{name}")
    assert push(tmp_path, url, storage_options=options).uploaded == ()


@pytest.mark.object_store
def test_another_data_set_in_a_bucket_is_replaced_only_when_asked(
    bucket: tuple[str, dict[str, Any]], tmp_path: Path, write_small_dataset: Write
) -> None:
    url, options = bucket[0] + "/other", bucket[1]
    write_small_dataset(tmp_path / "one")
    write_small_dataset(tmp_path / "two", seed=1, num_shards=2)
    push(tmp_path / "one", url, storage_options=options)
    with pytest.raises(SettingsMismatchError, match="has another data set"):
        push(tmp_path / "two", url, storage_options=options)
    push(tmp_path / "two", url, storage_options=options, replace=True)
    there = objects(url, options)
    assert there["data/train-00000.tar"] == (tmp_path / "two/data/train-00000.tar").read_bytes()
    assert "data/train-00002.tar" not in there


@pytest.mark.object_store
def test_a_bucket_that_is_not_there_is_named(
    bucket: tuple[str, dict[str, Any]], tmp_path: Path, write_small_dataset: Write
) -> None:
    write_small_dataset(tmp_path)
    with pytest.raises(StorageError, match="s3://no-such-bucket/x/"):
        push(tmp_path, "s3://no-such-bucket/x", storage_options=bucket[1])
