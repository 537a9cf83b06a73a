"""Whatever a structure from outside holds in place of a value: it is refused by name, or it is one that is true."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walloc_data import LatentDataset
from walloc_data.adapters.config import LatentModelConfig
from walloc_data.codec import load_codec
from walloc_data.codec.decoders import build_decoder
from walloc_data.convert.journal import ShardDone
from walloc_data.convert.plan import Plan
from walloc_data.dataset.decode import webp_size
from walloc_data.errors import CorruptShardError, WallocDataError
from walloc_data.format import ChannelStatistics, EncodeSettings, Manifest, ShardRecord, SplitRecord, load_json
from walloc_data.latents import decode_webp, encode_webp
from walloc_data.report.history import read_failures, read_runs
from walloc_data.storage import Store, read_manifest
from walloc_data.text import printable

SPEC = load_codec("klt-16x", decoder=False)[1].spec
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

NASTY = st.sampled_from(
    [None, True, -1, 0, 2**31, 2**62, 2**64, 10**400, 0.5, 1e308, "", "x", "\x1b[2J", "../x", "\ud800", [], {}, [[]]]
)
VALUES = NASTY | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def manifest() -> dict[str, Any]:
    shards = (
        ShardRecord("data/train-00000.tar", 3, 9000, "a" * 64),
        ShardRecord("data/train-00001.tar", 1, 5000, "b" * 64),
    )
    split = SplitRecord(
        {"kind": "folder", "num_items": 5, "notes": ["a"]},
        4,
        1,
        shards,
        (12, 20, 20),
        True,
        ChannelStatistics.zero(SPEC),
    )
    whole = Manifest(SPEC, EncodeSettings(size_px=160), ("cat", "dog"), {"train": split}, {"walloc_data": "0.1.0"})
    return json.loads(whole.to_json())  # type: ignore[no-any-return]


def plan() -> dict[str, Any]:
    source = {"kind": "folder", "num_items": 5, "shuffled": True, "labelled": True, "columns": ["a"]}
    return json.loads(json.dumps(Plan("train", source, EncodeSettings(), SPEC, ("cat",), {"shards": "1"}).to_dict()))


def done() -> dict[str, Any]:
    return {
        "shard": ShardRecord("data/train-00000.tar", 3, 9000, "a" * 64).to_dict(),
        "md5": "0" * 32, "first": 0, "last": 4,
        "failures": [{"key": "000000003", "name": "x.png", "source_index": 3, "reason": "cut"}],
        "latent_shape": [12, 4, 4], "statistics": ChannelStatistics.zero(SPEC).to_dict(), "num_pixels": 3,
        "source_bytes": 4, "webp_bytes": 5, "left_out": {"band": 1}, "largest_picture": 3,
    }  # fmt: skip


def paths(value: Any, *, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the places of values; of long lists the first few."""
    found = [prefix] if prefix else []
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:2]
        if isinstance(value, list)
        else []
    )
    return found + [path for name, item in items for path in paths(item, prefix=(*prefix, name))]


def changed(value: Any, path: tuple[str | int, ...], new: Any, *, how: str) -> Any:
    copy = json.loads(json.dumps(value))
    target = copy
    for step in path[:-1]:
        target = target[step]
    if how == "remove":
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return copy


def config() -> dict[str, Any]:
    made = LatentModelConfig(
        "resnet18", "skip_early", SPEC, (12, 6, 6), 2, ("cat", "dog"), timm_kwargs={"drop_rate": 0.1}, size_px=48
    )
    return json.loads(json.dumps(made.to_dict()))  # type: ignore[no-any-return]


PARSERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "manifest": (manifest, lambda value: Manifest.from_json(json.dumps(value), context="walloc.json").to_json()),
    "plan": (
        plan,
        lambda value: Plan.from_dict(load_json(json.dumps(value), context="plan.json"), context="plan.json").to_dict(),
    ),
    "config": (
        config,
        lambda value: LatentModelConfig.from_dict(
            load_json(json.dumps(value), context="config.json"), context="config.json"
        ).to_dict(),
    ),
    "done": (done, lambda value: ShardDone.from_json(json.dumps(value).encode(), context="00000.json").to_json()),
}


def refusal(action: Callable[[], object]) -> str:
    """Return the text of our error; "" where there is none."""
    try:
        action()
    except WallocDataError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_a_structure_with_any_value_in_any_place_is_refused_by_name_or_holds(name: str) -> None:
    make, parse = PARSERS[name]
    whole = make()
    parse(whole)

    @QUICK
    @given(st.sampled_from(paths(whole)), VALUES, st.sampled_from(["replace", "replace", "remove"]))
    def check(path: tuple[str | int, ...], value: Any, how: str) -> None:
        said = refusal(lambda: parse(changed(whole, path, value, how=how)))
        assert not said or said.startswith(("walloc.json", "plan.json", "config.json", "00000.json"))
        assert printable(said) == said

    check()


@QUICK
@given(VALUES | st.dictionaries(st.sampled_from(["kind", "width", "blocks", "groups", "half_blocks"]), VALUES))
def test_a_decoder_is_built_of_what_its_description_may_say(value: Any) -> None:
    import torch

    if not isinstance(value, dict):
        return
    with torch.device("meta"):
        said = refusal(lambda: build_decoder(value, latent_dim=12, out_channels=192))
    assert not said or said.startswith("decoder: ")


@QUICK
@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_bytes_that_are_no_packed_latent_are_named(tail: bytes, place: int, value: int) -> None:
    import numpy as np

    data = bytearray(encode_webp(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)))
    data[place % len(data)] = value
    for mutated in (bytes(data), bytes(data[: len(data) // 2]) + tail, tail):
        webp_size(memoryview(mutated))
        with suppress(CorruptShardError):
            assert decode_webp(mutated, size=(8, 8)).shape == (8, 8, 3)


@QUICK
@given(st.lists(VALUES | st.fixed_dictionaries({"samples": VALUES, "seconds": VALUES, "stages_s": VALUES}), max_size=4))
def test_logs_and_failures_of_any_kind_can_be_shown(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    root = tmp_path_factory.getbasetemp() / "log"
    text = "\n".join(json.dumps(line) for line in lines).encode()
    for path in ("failures/train.jsonl", ".walloc/train/log.jsonl"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text)
    failures, reasons = read_failures(Store(root), "train")
    runs, stages = read_runs(Store(root), "train")
    json.dumps([failures, reasons, runs, stages], ensure_ascii=False, allow_nan=False).encode()


@given(st.text())
def test_printed_text_steers_no_terminal_and_can_always_be_written(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert all(c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0) for c in shown)
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029") & set(shown)
    assert printable(shown) == shown


def test_what_people_write_is_printed_as_it_is() -> None:
    for text in ("Größe 日本語 👩‍🔬 — naïve\tx\ny", "C:\\photos\\cat.jpg"):
        assert printable(text) == text


@pytest.mark.parametrize("url", ["{}/a\nWARNING: all is well", "memory://a\nWARNING: all is well"])
def test_the_name_of_a_store_is_one_line_in_every_error(tmp_path: Path, url: str) -> None:
    store = Store(url.format(tmp_path))
    for fail in (
        lambda: store.read_bytes("walloc.json", max_bytes=1),
        lambda: store.num_bytes("x/\ny"),
        lambda: store.download("x\ny", tmp_path / "here"),
        lambda: read_manifest(store),
        lambda: LatentDataset(store),
    ):
        with pytest.raises(WallocDataError) as raised:
            fail()
        assert "\n" not in str(raised.value)
        assert "a\\nWARNING" in str(raised.value)
    store.write_bytes("x\ny", b"1")  # and is a name like any other
    assert Store(store.root).read_bytes("x\ny", max_bytes=1) == b"1"


def test_errors_print_names_that_would_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b]0;title\x07\udce9.json"
    with pytest.raises(WallocDataError, match=r"\\x1b]0;title\\x07\\udce9"):
        Store(path).read_bytes("walloc.json", max_bytes=1)
