"""Old names of arguments work for one more version, and say what the new name is."""

import warnings

import pytest

from walloc_data import Manifest
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
