"""The plan: a permutation that needs no memory, ranges that cover, differences that have names."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walloc_data.convert.plan import Plan, differences, fragments_per_unit, parse_part, version_differences
from walloc_data.errors import FormatError
from walloc_data.format import CodecSpec, EncodeSettings

SPEC = CodecSpec("klt", 3, 3, 12, 8, "bior4.4", "0" * 64)


def make_plan(num_items: int | None = 100, **fields: object) -> Plan:
    source = {
        "kind": "folder",
        "location": "here",
        "num_items": num_items,
        "identity": "a",
        "labelled": True,
        "columns": [],
        "notes": [],
        "shuffled": num_items is not None,
    }
    options = EncodeSettings(**fields)  # type: ignore[arg-type]
    return Plan("train", source, options, SPEC, ("cat", "dog"), {"walloc_data": "0"})


def in_fragments(num_fragments: int, *, together: int = 1, **fields: object) -> Plan:
    plan = make_plan(None, **fields)
    number = {
        "num_fragments": num_fragments,
        "fragments_per_unit": together,
        "shuffled": plan.settings.shuffle_seed is not None,
    }
    return replace(plan, source={**plan.source, **number})


@given(num_items=st.integers(1, 500), samples_per_shard=st.integers(1, 600), seed=st.none() | st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_shards_cover_the_source_once(num_items: int, samples_per_shard: int, seed: int | None) -> None:
    plan = make_plan(num_items, samples_per_shard=samples_per_shard, shuffle_seed=seed)
    shards = [plan.source_indices(unit) for unit in range(plan.num_units)]
    assert all(1 <= len(shard) <= samples_per_shard for shard in shards)
    assert all(len(shard) == samples_per_shard for shard in shards[:-1])
    assert sorted(np.concatenate(shards).tolist()) == list(range(num_items))
    if seed is None:
        assert np.concatenate(shards).tolist() == list(range(num_items))


def test_a_shard_beyond_the_last_is_refused() -> None:
    with pytest.raises(FormatError, match="no unit 4: there are 4"):
        make_plan(7, samples_per_shard=2).source_indices(4)


@given(num_fragments=st.integers(1, 200), together=st.integers(1, 9), seed=st.none() | st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_units_cover_the_fragments_once(num_fragments: int, together: int, seed: int | None) -> None:
    plan = in_fragments(num_fragments, together=together, shuffle_seed=seed)
    units = [plan.fragments(unit) for unit in range(plan.num_units)]
    assert all(len(unit) == together for unit in units[:-1])
    assert sorted(np.concatenate(units).tolist()) == list(range(num_fragments))
    if seed is None:
        assert np.concatenate(units).tolist() == list(range(num_fragments))


def test_keys_tell_samples_apart_in_the_order_of_their_shards() -> None:
    assert (make_plan().key(3, 42), in_fragments(5).key(3, 42)) == ("000000042", "00003-0000042")
    with pytest.raises(FormatError, match="a source that is read in fragments has no positions"):
        in_fragments(5).source_indices(0)
    with pytest.raises(FormatError, match="a source that is read by position has no fragments"):
        make_plan().fragments(0)


@pytest.mark.parametrize(
    ("number", "sizes", "together"),
    [
        (147, [10**9] * 147, 1),
        (10, [1000] * 10, 1),  # few, so that each is a task for some worker
        (100_000, [10**6] * 100_000, 33),  # 32 MiB together
        (100_000, [10] * 100_000, 390),  # 256 units at least
        (100_000, None, 1),
    ],
)
def test_very_many_small_fragments_are_read_together(number: int, sizes: list[int] | None, together: int) -> None:
    assert fragments_per_unit(number, sizes) == together


def test_a_plan_survives_json() -> None:
    plan = make_plan(size_px=160, mirror=True)
    assert Plan.from_dict(plan.to_dict(), context="plan.json") == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"size_px": "big"}}, "plan.json: settings: size_px must be an integer"),
        ({"source": {"shuffled": 1}}, "plan.json: source.shuffled must be a bool"),
        ({"split": "../etc"}, "plan.json: plan: split '../etc' must be lower-case"),
        ({"codec": None}, "plan.json: codec: expected an object"),
    ],
)
def test_a_damaged_plan_is_refused_by_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Plan.from_dict(make_plan().to_dict() | change, context="plan.json")


def test_differences_name_every_field() -> None:
    before = make_plan(100)
    now = replace(
        make_plan(90, size_px=64, mirror=True),
        codec=replace(SPEC, encoder_sha256="1" * 64),
        class_names=("cat", "cow"),
    )
    assert differences(before, now) == [
        f"codec.encoder_sha256: '{'0' * 64}' -> '{'1' * 64}'",
        "settings.mirror: False -> True",
        "settings.size_px: None -> 64",
        "source.num_items: 100 -> 90",
        "class_names: ('cat', 'dog') -> ('cat', 'cow')",
    ]


def test_the_programs_that_write_the_bytes_are_named() -> None:
    before = make_plan()
    now = replace(before, written_by={"webp_writer": "3", "libjpeg": "9"})
    assert differences(before, now) == []
    found = version_differences(replace(before, written_by={"libjpeg": "8"}), now)
    assert found == ["written_by.libjpeg: 8 -> 9", "written_by.webp_writer: None -> 3"]


def test_a_release_that_writes_the_same_bytes_resumes_what_another_began() -> None:
    before = replace(make_plan(), written_by={"walloc_data": "0.1.0", "webp_writer": "2"})
    now = replace(before, written_by={"walloc_data": "0.1.1", "webp_writer": "2", "shards": "1"})
    assert version_differences(before, now) == []
    assert version_differences(before, replace(now, written_by={**now.written_by, "pillow": "12.0.1"})) == []
    later = replace(before, written_by={"walloc_data": "0.2.0", "webp_writer": "2", "shards": "2"})
    assert version_differences(before, later) == ["written_by.shards: 1 -> 2"]


def test_a_source_that_moved_is_the_same_source() -> None:
    before = make_plan()
    assert differences(before, replace(before, source={**before.source, "location": "there"})) == []


@pytest.mark.parametrize(("text", "expected"), [("1/1", (0, 1)), ("3/8", (2, 8)), ("8/8", (7, 8))])
def test_parts_count_from_one(text: str, expected: tuple[int, int]) -> None:
    assert parse_part(text) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/4", "1/0", ""])
def test_an_impossible_part_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="must be I/N with I from 1 to N"):
        parse_part(text)
