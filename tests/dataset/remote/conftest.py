"""Data sets in a real S3 endpoint."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from walloc_data.format import Manifest

BUCKET = "reading"


@pytest.fixture
def credentials(swift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials in the environment, as the ecosystem does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="session")
def source(swift: Any, tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Manifest]) -> Path:
    """20 shards of 16 samples on disk."""
    root = tmp_path_factory.mktemp("source")
    make_dataset(root, num_samples=320)
    return root


_numbers = itertools.count()


def _options(url: str) -> dict[str, object]:
    return {"key": "test:tester", "secret": "testing", "endpoint_url": url, "skip_instance_cache": True}


@pytest.fixture(scope="session")
def upload(swift: Any, make_bucket: Callable[[str], dict[str, Any]]) -> Callable[[Path], str]:
    """Put a folder into the bucket under a prefix of its own; gives the url."""
    import s3fs

    fs = s3fs.S3FileSystem(**_options(swift.url))
    make_bucket(BUCKET)

    def put(folder: Path) -> str:
        prefix = f"{BUCKET}/{next(_numbers)}"
        files = [path for path in folder.rglob("*") if path.is_file()]
        fs.put([str(path) for path in files], [f"{prefix}/{path.relative_to(folder)}" for path in files])
        return f"s3://{prefix}"

    return put


@pytest.fixture(scope="session")
def url(upload: Callable[[Path], str], source: Path) -> str:
    return upload(source)


@pytest.fixture
def change(swift: Any) -> Callable[[str, str, bytes | None], None]:
    """Replace one file of an uploaded data set, or remove it."""
    import s3fs

    def put(url: str, name: str, data: bytes | None) -> None:
        fs = s3fs.S3FileSystem(**_options(swift.url))
        if data is None:
            fs.rm_file(f"{url}/{name}")
        else:
            fs.pipe_file(f"{url}/{name}", data)

    return put
