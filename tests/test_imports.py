"""Layers: a package imports only from packages of lower layers, and heavy dependencies stay in one package."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import walloc_data
from tests import warm

PACKAGE = Path(walloc_data.__file__).parent

# Packages of one layer do not import each other.
LAYERS = [
    {"deprecated", "templating", "text", "version"},
    {"errors"},
    {"devices", "files", "format", "permutations", "thrift", "webp"},
    {"parquet"},
    {"tables"},
    {"storage", "latents", "pictures", "regression"},
    {"card", "codec", "sources", "dataset", "transforms", "adapters"},
    {"convert", "report", "interop", "push"},
    {"demo", "fitting", "maintain", "serving"},
    {"adapting"},
    {"cli"},
    {"__main__"},
]
# Dependencies that only one package may import.
OWNERS = {
    "datasets": {"sources"},
    "diffusers": {"codec"},
    "fsspec": {"storage"},
    "pytorch_wavelets": {"codec"},
    "timm": {"adapters"},
}


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "walloc_data":
                names |= {f"walloc_data.{alias.name}" for alias in node.names}
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_from_lower_layers(path: Path) -> None:
    layer = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    here = package_of(path)
    assert here in layer, f"{path.name} is in no layer: give it one in LAYERS, and in the README's map"
    for name in imports_of(path):
        head, _, rest = name.partition(".")
        if head == "walloc_data" and rest:
            there = rest.partition(".")[0]
            assert there == here or layer[there] < layer[here], f"{here} imports {there}"
        elif head in OWNERS:
            assert here in OWNERS[head], f"{here} imports {head}, which belongs to {OWNERS[head]}"


def test_public_names_are_sorted_and_resolve() -> None:
    assert walloc_data.__all__ == sorted(walloc_data.__all__)
    for name in walloc_data.__all__:
        assert getattr(walloc_data, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute LatentDatset"):
        _ = walloc_data.LatentDatset


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import walloc_data", {"torch", "numpy", "timm", "datasets", "PIL", "fsspec"}),
        ("import walloc_data.cli", {"torch", "numpy", "timm", "datasets", "PIL", "fsspec"}),
        ("from walloc_data.convert import dataset_info, finish_dataset", {"torch", "datasets", "PIL"}),
        ("from walloc_data.convert import verify_dataset", {"torch", "datasets", "timm"}),
        ("import walloc_data.latents, walloc_data.dataset.index, walloc_data.pictures", {"torch", "datasets"}),
        (
            "from walloc_data import LatentDataset",
            {"timm", "datasets", "diffusers", "pytorch_wavelets", "walloc_data.codec"},
        ),
        ("from walloc_data import encode_dataset", {"timm", "diffusers", "pytorch_wavelets", "walloc_data.adapters"}),
        ("from walloc_data import load_codec; load_codec()", {"timm", "datasets", "diffusers", "pytorch_wavelets"}),
    ],
)
def test_importing_one_package_does_not_load_another(statement: str, absent: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    if "torch" in absent:
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    else:
        found = warm.run(["-c", code], check=True)
    assert not absent & set(found.stdout.split())


@pytest.mark.slow
def test_modules_of_a_package_import_each_other_in_no_circle() -> None:
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        names = imports_of(path) | {
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[module] = {name for name in names if name in modules and not name.endswith("__init__")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")
