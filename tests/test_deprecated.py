"""Old names of arguments work for one more version, and say what the new name is."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from walloc_data import Manifest
from walloc_data.codec import read_pictures
from walloc_data.convert import dataset_info
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError


@renamed_arguments(colour="color")
def paint(text: str, *, color: str = "red") -> str:
    return f"{text} in {color}"


def test_an_old_name_works_and_names_the_new_one_at_the_callers_line() -> None:
    with pytest.warns(DeprecationWarning, match=r"paint\(colour=\) is now paint\(color=\)") as caught:
        assert paint("a", colour="blue") == "a in blue"  # type: ignore[call-arg]
    assert caught[0].filename == __file__


def test_a_new_name_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paint("a", color="blue") == "a in blue"


def test_both_names_are_refused() -> None:
    with pytest.raises(TypeError, match="both 'color' and its old name 'colour'"):
        paint("a", color="blue", colour="red")  # type: ignore[call-arg]


def test_manifests_are_read_with_the_old_name_of_context() -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"from_json\(where=\) is now from_json\(context=\)"),
        pytest.raises(FormatError, match=r"^walloc.json: not a walloc_data manifest"),
    ):
        Manifest.from_json("{}", where="walloc.json")  # type: ignore[call-arg]


def test_the_old_names_of_public_arguments_work(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.warns(DeprecationWarning, match=r"read_pictures\(say=\) is now read_pictures\(log=\)"):
        reading = read_pictures(tmp_path, say=said.append)  # type: ignore[call-arg]
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    assert len(list(reading)) == 1
    assert "a.png skipped" in said[0]
    with (
        pytest.warns(DeprecationWarning, match=r"dataset_info\(out=\) is now dataset_info\(dataset=\)"),
        pytest.raises(FormatError, match="not a data set of latents"),
    ):
        dataset_info(out=tmp_path)  # type: ignore[call-arg]
