"""Fixtures that several packages share: where real pictures are, and small data sets made from them."""

import errno
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# The suite runs two tests at a time (see pyproject.toml): torch must not take both cores for each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the object store as slow: the endpoint alone takes several seconds to start.

    Files with such tests run first, then other slow ones: one that began last would keep the other process waiting.
    """
    rank: dict[Path, int] = {}
    for item in items:
        store = item.get_closest_marker("object_store") is not None
        if store:
            item.add_marker(pytest.mark.slow)
        slow = item.get_closest_marker("slow") is not None
        rank[item.path] = min(rank.get(item.path, 2), 2 - store - slow)
    items.sort(key=lambda item: rank[item.path])


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


class Swift:
    """A real S3 endpoint (OpenStack Swift) on loopback.

    What answers requests can be killed and started again on the same data; the servers behind it stay, as starting all
    takes ten seconds of a processor.
    """

    def __init__(self, scripts: Path, folder: Path) -> None:
        self.scripts, self.folder = scripts, folder
        self.port = _five_free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self._restarted: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        command = ["bash", self.scripts / "up.sh", self.folder, str(self.port)]
        started = subprocess.run(command, capture_output=True, text=True, check=False)
        if started.returncode:
            pytest.fail(f"Swift did not start: {started.stderr}")

    def end(self) -> None:
        subprocess.run(["bash", self.scripts / "down.sh", self.folder], check=False)
        if self._restarted is not None:
            self._restarted.wait()

    def kill(self) -> None:
        os.killpg(int(self._proxy.read_text()), signal.SIGKILL)  # a group of its own
        if self._restarted is not None:
            self._restarted.wait()
        while self._answers():
            time.sleep(0.02)

    def start(self) -> None:
        with (self.folder / "log" / "proxy").open("ab") as log:
            self._restarted = subprocess.Popen(
                ["swift-proxy-server", "proxy-server.conf"],
                cwd=self.folder / "etc",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._proxy.write_text(str(self._restarted.pid))  # where down.sh looks
        while not self._answers():
            if self._restarted.poll() is not None:
                pytest.fail(f"Swift did not start again: see {self.folder / 'log'}")
            time.sleep(0.1)

    @property
    def _proxy(self) -> Path:
        return self.folder / "run" / "proxy.pid"

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True


def _five_free_ports() -> int:
    """The first of five neighbours; another run of the suite on this machine gets others."""
    for first in range(20000 + os.getpid() % 1000 * 10, 32000, 10):
        try:
            for port in range(first, first + 5):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    raise OSError("no five free ports")


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """The endpoint, running; access key test:tester, secret testing. Whoever kills it starts it again."""
    scripts = Path(os.environ.get("WALLOC_DATA_OBJECT_STORE") or ROOT.parent / "shared" / "object-store")
    if not (scripts / "up.sh").is_file() or shutil.which("swift-proxy-server") is None:
        pytest.skip("needs OpenStack Swift and the scripts that start it: set WALLOC_DATA_OBJECT_STORE")
    pytest.importorskip("s3fs")
    store = Swift(scripts, tmp_path_factory.mktemp("swift"))
    try:
        store.begin()
        yield store
    finally:
        store.end()


@pytest.fixture
def faults(swift: Swift) -> Iterator[Any]:
    """A proxy in front of the endpoint that injects faults: `tests/fault_proxy.py`."""
    spec = importlib.util.spec_from_file_location("fault_proxy", ROOT / "tests" / "fault_proxy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fault_proxy"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    with module.fault_proxy(swift.port) as running:
        yield running


@pytest.fixture(scope="session")
def make_bucket(swift: Swift) -> Callable[[str], dict[str, Any]]:
    """Make a bucket, and give the storage options that reach it."""
    import s3fs

    def make(name: str) -> dict[str, Any]:
        options = {
            "key": "test:tester",
            "secret": "testing",
            "endpoint_url": swift.url,
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        }
        fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        for attempt in range(60):  # the endpoint answers before the servers behind it do, and says 503 meanwhile
            try:
                with suppress(FileExistsError):  # made by an attempt whose answer was an error all the same
                    fs.mkdir(name)
                fs.pipe_file(f"{name}/there", b"1")
                break
            except OSError:
                if attempt == 59:
                    raise
                time.sleep(1)
        return options

    return make


# The first is for containers, where tests run as root; the others keep the browser from calling its maker.
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose file system has no locks, as Lustre often is mounted; the temporary folder has them."""
    import fcntl

    folder = tmp_path / "lustre"
    folder.mkdir()
    flock = fcntl.flock

    def refuse(descriptor: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_relative_to(folder):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder
