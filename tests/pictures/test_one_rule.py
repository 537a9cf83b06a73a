"""Whatever opens a picture does so by one list of formats and one set of rules."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import walloc_data
from tests.convert.conftest import as_bytes, picture
from walloc_data import encode_dataset
from walloc_data.codec import read_pictures
from walloc_data.errors import CodecError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import FORMATS, decode_picture

PACKAGE = Path(walloc_data.__file__).parent
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def calls_of_open(path: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).endswith("Image.open")]


def test_pictures_are_decoded_in_one_package_and_whatever_is_opened_has_a_list_of_formats() -> None:
    places = {path: calls for path in PACKAGE.rglob("*.py") if (calls := calls_of_open(path))}
    others = {str(path.relative_to(PACKAGE)) for path in places if path.parent != PACKAGE / "pictures"}
    # Packed latents, and whether a file is what somebody has in memory.
    assert others == {"latents.py", "convert/adopted.py", "sources/as_files.py"}
    for path, calls in places.items():
        for call in calls:
            assert "formats" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)  # which start other programs


def test_postscript_that_is_named_like_a_photograph_reaches_no_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tools, ran = tmp_path / "pictures", tmp_path / "tools", tmp_path / "ran"
    folder.mkdir()
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    (folder / "a.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(Exception), Image.open(folder / "a.jpg") as image:  # noqa: B017 - what Pillow alone does
        image.load()
    assert ran.exists()
    ran.unlink()
    said: list[str] = []
    with pytest.raises(CodecError, match="no picture could be read"):
        list(read_pictures(folder, log=said.append))
    assert said == [f"{folder}: a.jpg skipped: not a picture in a supported format"]
    (folder / "b.png").write_bytes(as_bytes(picture(1)))
    summary = encode_dataset(folder, tmp_path / "out", progress=False)
    assert (summary.num_samples, summary.num_failures) == (1, 1)
    assert not ran.exists()


def test_training_pictures_are_read_by_the_converters_rules(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6
    rgba = picture(1).convert("RGBA")
    rgba.putalpha(0)
    files = {
        "a.png": as_bytes(picture(0), exif=upright),
        "b.png": as_bytes(rgba),
        "c.pgm": as_bytes(picture(2).convert("L"), "PPM"),
        "d.png": as_bytes(Image.fromarray(np.full((8, 8), 4095, np.uint16))),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    settings = EncodeSettings(max_value=4095, background=(0, 0, 255))
    found = list(read_pictures(tmp_path, settings=settings))
    expected = [np.asarray(decode_picture(data, settings=settings)) for data in files.values()]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].shape == (48, 40, 3)
    assert found[1][0, 0].tolist() == [0, 0, 255]
    assert found[3][0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_training_leaves_pictures_over_the_limit_out_by_name_unless_it_is_raised(tmp_path: Path, kind: str) -> None:
    (tmp_path / "large.png").write_bytes(as_bytes(picture(0)))
    path = tmp_path / "large.png" if kind == "file" else tmp_path
    said: list[str] = []
    with pytest.raises(CodecError, match=r"no picture could be read \(1 failed\)"):
        list(read_pictures(path, settings=EncodeSettings(max_pixels=1919), log=said.append))
    assert said == [f"{path}: large.png skipped: 48 x 40 pixels; at most 1919 are read"]
    assert [found.shape for found in read_pictures(path, settings=EncodeSettings(max_pixels=1920))] == [(40, 48, 3)]


def test_a_pipe_that_is_named_like_a_picture_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(CodecError, match="no picture could be read"):
            list(read_pictures(path))
