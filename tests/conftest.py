"""Fixtures that several rooms share: where real pictures are, and small data sets made from them."""

import os
import tarfile
from pathlib import Path

import pytest

# The suite runs two tests at a time (see pyproject.toml): torch must not take both cores for each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file share their fixtures, and those of the object store share one store: keep them together."""
    for item in items:
        together = "object_store" if item.get_closest_marker("object_store") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))


def find_shared() -> Path | None:
    """The folder with Kodak and Imagenette tars: $WALLOC_DATA_SHARED, or ../shared/data beside the repository."""
    for candidate in (os.environ.get("WALLOC_DATA_SHARED"), ROOT.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared photographs; tests that need them skip where they are absent."""
    folder = find_shared()
    if folder is None:
        pytest.skip("needs the shared photographs: set WALLOC_DATA_SHARED")
    return folder


@pytest.fixture(scope="session")
def kodak(shared_data: Path) -> list[Path]:
    """Kodak photographs, 768 x 512 or 512 x 768 PNG."""
    return sorted((shared_data / "kodak").glob("*.png"))


@pytest.fixture(scope="session")
def imagenette_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of 40 Imagenette photographs: 4 from each of 10 classes, 160 px on the shorter side."""
    root = tmp_path_factory.mktemp("imagenette")
    taken: dict[str, int] = {}
    with tarfile.open(shared_data / "imagenette160-val.tar") as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and taken.get(parts[-2], 0) < 4:
                taken[parts[-2]] = taken.get(parts[-2], 0) + 1
                target = root / parts[-2] / parts[-1]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return root
