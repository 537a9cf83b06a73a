"""The report: what it says, and that nothing in a data set can make it do anything."""

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from walloc_data.errors import FormatError, StorageError
from walloc_data.format import Manifest
from walloc_data.report import preview, report
from walloc_data.report.charts import Charts, bar_table, number, picture_bytes
from walloc_data.report.history import read_failures, read_runs
from walloc_data.storage import Store


class Page(HTMLParser):
    """Elements, their attributes and the text of a page, by a parser that is not ours."""

    VOID = frozenset({"meta", "img", "rect", "line", "polygon", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(imagenette_latents: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    path = report(imagenette_latents.out, tmp_path_factory.mktemp("page") / "report.html")
    return path, Page(path.read_text())


def manifest_of(out: Path) -> Manifest:
    return Manifest.from_json((out / "walloc.json").read_text(), context="test")


@pytest.mark.slow
def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere(written: tuple[Path, Page]) -> None:
    path, page = written
    assert page.open == []
    assert {name for name, _ in page.tags} & {"script", "link", "iframe", "object", "form", "base"} == set()
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith(("data:image/webp;base64,", "#"))
    assert "url(" not in path.read_text()
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy)
    assert path.stat().st_size < 2_000_000


def test_a_page_says_what_the_data_set_is(written: tuple[Path, Page], imagenette_latents: Any) -> None:
    _, page = written
    manifest = manifest_of(imagenette_latents.out)
    record = manifest.splits["train"]
    text = " ".join(page.text.split())
    assert "43 pictures of 11 classes" in text
    assert manifest.codec.encoder_sha256 in text
    assert "96 x 96 px, the centre square" in text
    assert "Every picture is 96 × 96 pixels." in text
    for shard in record.shards:
        assert shard.sha256 in text
        assert f"{shard.num_bytes:,}" in text
    for i, (bits, std) in enumerate(zip(record.statistics.entropy_bits, record.statistics.std, strict=True)):
        assert f"Channel {i}" in text
        assert f"deviation {std:.1f}, entropy {bits:.2f} bits" in text
    assert "3 pictures of the source could not be encoded" in text
    assert "samples per second" in text


def test_hostile_names_are_text(written: tuple[Path, Page]) -> None:
    path, page = written
    assert '<img src=x onerror="document.title=1">' in page.text
    assert "<svg onload=alert(1)>.jpg" in page.text
    assert all(image["src"] and image["src"].startswith("data:") for image in page.all("img"))
    assert "<svg onload" not in path.read_text()


def test_every_picture_and_chart_has_a_name(written: tuple[Path, Page]) -> None:
    _, page = written
    assert len(page.all("img")) >= 11 * 3
    assert all(image["alt"] for image in page.all("img"))
    charts = page.all("svg")
    assert len(charts) == 2 + 12 + 1
    names = {attributes.get("id") for _, attributes in page.tags}
    for chart in charts:
        assert chart["role"] == "img"
        assert set(str(chart["aria-labelledby"]).split()) <= names


def test_the_same_data_set_gives_the_same_page(
    written: tuple[Path, Page], imagenette_latents: Any, tmp_path: Path
) -> None:
    assert report(imagenette_latents.out, tmp_path / "again.html").read_bytes() == written[0].read_bytes()


def test_unlabelled_pictures_of_several_shapes_have_their_charts(kodak_latents: Any, tmp_path: Path) -> None:
    page = Page(report(kodak_latents.out, tmp_path / "a.html").read_text())
    text = " ".join(page.text.split())
    assert "Class balance" not in text
    assert "Shapes: portrait left, landscape right" in text
    assert "of several shapes" in text
    assert "Every picture of the source was encoded." in text


def test_many_classes_are_ranked_and_a_label_out_of_all_bounds_costs_nothing(
    imagenette_latents: Any, tmp_path: Path
) -> None:
    import pyarrow.parquet

    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    path = out / "index" / "train.parquet"
    table = pyarrow.parquet.read_table(path)
    labels = [*range(1000, 1042), 2**62]
    column = pyarrow.array(labels, table.schema.field("label").type)
    pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("label"), "label", column), path)
    manifest = json.loads((out / "walloc.json").read_text())
    manifest["splits"]["train"]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "walloc.json").write_text(json.dumps(manifest))
    page = Page(report(out, tmp_path / "a.html").read_text())
    assert "label 4611686018427387904" in page.text
    assert "54 classes; from 0 to 1 samples each" in page.text  # the eleven with names have none
    assert "Class balance: samples of each class, largest first" in page.text


def test_pictures_too_large_to_draw_are_left_out(
    imagenette_latents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walloc_data.report.samples.MAX_DRAWN_PIXELS", 96 * 96 - 1)
    page = Page(report(imagenette_latents.out, tmp_path / "a.html").read_text())
    assert page.all("img") == []
    with pytest.raises(FormatError, match="has 96 x 96 pixels; at most 9215 are drawn here"):
        preview(imagenette_latents.out, tmp_path / "a.png", keys=["000000007"])
    with pytest.raises(FormatError, match="0 samples to show"):
        preview(imagenette_latents.out, tmp_path / "a.png")


@pytest.mark.slow
def test_what_a_conversion_left_behind_may_be_absent_or_nonsense(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    shutil.rmtree(out / ".walloc")
    (out / "failures" / "train.jsonl").unlink()
    text = Page(report(out, tmp_path / "a.html").read_text()).text
    assert "samples per second" not in text
    assert "failures/train.jsonl, which is not here" in text
    (out / "failures" / "train.jsonl").write_text('{"reason": [1], "name": {"<b>": 1}}\n[1]\nnot json\n' + "[" * 99999)
    (out / ".walloc" / "train").mkdir(parents=True)
    (out / ".walloc" / "train" / "log.jsonl").write_text(
        '{"samples": "x", "seconds": 1}\n{"samples": 5, "seconds": 0, "stages_s": {"<i>": 1, "b": "c"}}\n'
    )
    page = Page(report(out, tmp_path / "b.html").read_text())
    assert "<i>" in page.text
    assert "b" not in {name for name, _ in page.tags}


def test_failures_that_differ_in_numbers_only_are_one_reason(tmp_path: Path) -> None:
    (tmp_path / "failures").mkdir()
    lines = [{"source_index": i, "name": f"{i}.jpg", "reason": f"truncated ({i} bytes left)"} for i in range(300)]
    lines.append({"source_index": 300, "name": "a.jpg", "reason": "empty"})
    (tmp_path / "failures" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failures, reasons = read_failures(Store(tmp_path), "train")
    assert len(failures) == 200
    assert failures[7] == ("7", "7.jpg", "truncated (7 bytes left)")
    assert reasons == [("truncated (N bytes left)", 300), ("empty", 1)]


def test_runs_add_up_over_the_log(tmp_path: Path) -> None:
    (tmp_path / ".walloc" / "train").mkdir(parents=True)
    log = tmp_path / ".walloc" / "train" / "log.jsonl"
    log.write_text(
        '{"samples": 10, "seconds": 2.5, "stages_s": {"webp": 1.5}}\n'
        '{"samples": 4, "seconds": 1, "stages_s": {"webp": 0.5}}\n'
    )
    assert read_runs(Store(tmp_path), "train") == ([(10, 2.5), (4, 1.0)], {"webp": 2.0})
    assert read_runs(Store(tmp_path), "test") == ([], {})


def test_a_damaged_data_set_or_an_unwritable_target_is_one_error(imagenette_latents: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a data set of latents"):
        report(tmp_path, tmp_path / "a.html")
    with pytest.raises(StorageError, match="the report could not be written"):
        report(imagenette_latents.out, tmp_path / "no" / "a.html")
    for argument in ("samples_per_class", "max_classes"):
        with pytest.raises(FormatError, match=f"{argument} must be at least 0, not -1"):
            report(imagenette_latents.out, tmp_path / "a.html", **{argument: -1})


def test_a_histogram_draws_its_counts() -> None:
    drawing = Charts().histogram(np.array([1.0, 1.0, 2.0, 4.0]), title="T", unit="px", bins=3, whole=True)
    heights = [float(height) for height in re.findall(r'<rect class="bar"[^>]* height="([\d.]+)"', drawing)]
    assert heights == [heights[0], heights[0] / 2, heights[0] / 2] or heights[0] == 2 * heights[1]
    assert "mean 2" in drawing
    assert "4 pictures: from 1 to 4 px, mean 2, median 1.5" in drawing


def test_a_histogram_of_one_value_is_one_bar() -> None:
    drawing = Charts().histogram(np.full(5, 7.0), title="T", unit="px")
    assert drawing.count('<rect class="bar"') == 1


def test_bars_are_as_long_as_their_values_and_names_are_escaped() -> None:
    table = bar_table([("<b>", 4.0, "4"), ("c", 1.0, "1")], caption="C", head=("name", "n"))
    assert re.findall(r"width:([\d.]+)%", table) == ["100.0", "25.0"]
    assert "&lt;b&gt;" in table
    assert bar_table([], caption="C", head=("name", "n")).count("<tr>") == 1


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.0, "1,234,567"), (12.3456, "12.3"), (0.0, "0"), (3.0, "3"), (float("nan"), "unknown")]
)
def test_numbers_are_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_bytes_are_for_people() -> None:
    assert [picture_bytes(n) for n in (0, 999, 1000, 2365440, 5e13)] == ["0 B", "999 B", "1 kB", "2.37 MB", "50 TB"]
