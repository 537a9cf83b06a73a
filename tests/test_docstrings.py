"""Every public name shows itself at work: its docstring has an example, and the example does what it says."""

import doctest
import importlib
import inspect
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import walloc_data
from walloc_data import demo, encode_dataset
from walloc_data.adapters import create_latent_model, save_latent_model
from walloc_data.dataset import LatentDataset
from walloc_data.serving import attach_codec

# The command line has its examples in `--help` (tests/test_cli.py).
NOT_PACKAGES = {"__main__", "cli"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_objects() -> Iterator[tuple[str, Any]]:
    """Classes and functions in the `__all__` of the package and its subpackages, each once; errors need no example."""
    packages = (found.name for found in pkgutil.iter_modules(walloc_data.__path__) if found.name not in NOT_PACKAGES)
    found: dict[tuple[str, str], tuple[str, Any]] = {}
    for module in (walloc_data, *(importlib.import_module(f"walloc_data.{package}") for package in sorted(packages))):
        for name in sorted(module.__all__):
            value = getattr(module, name)
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not is_error:
                found.setdefault((value.__module__, value.__qualname__), (f"{module.__name__}.{name}", value))
    yield from found.values()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what examples use: `pictures/` of a cat and of coffee, `my-latents/` of them, `my-model/` on those.

    The model was shown its eight pictures often enough to know them.
    """
    from skimage import data

    folder = tmp_path_factory.mktemp("prepared")
    for name, photograph in (("cat", data.chelsea()), ("coffee", data.coffee())):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            top, left = 60 + 40 * (i // 2), 100 + 60 * (i % 2)
            crop = Image.fromarray(photograph[top : top + 128, left : left + 128])
            crop.save(folder / "pictures" / name / f"{i}.jpg", quality=90)
    latents = folder / "my-latents"
    encode_dataset(folder / "pictures", latents, size_px=96, samples_per_shard=4, progress=False)
    torch.manual_seed(0)
    train = LatentDataset(latents, cache_folder=tmp_path_factory.mktemp("cache"))
    model = create_latent_model("vit_tiny_patch16_224", dataset=train, depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch, labels = next(iter(train.loader(batch_size=8)))
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    attach_codec(save_latent_model(model, folder / "my-model"), dataset=latents)
    return folder


# What other libraries do with their files is theirs.
THEIRS = {"walloc_data.interop": [pytest.mark.filterwarnings("ignore::ResourceWarning")]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(*found, id=found[0], marks=THEIRS.get(found[1].__module__, [])) for found in public_objects()],
)
def test_every_public_name_has_an_example_that_runs(
    name: str, value: Any, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ">>> " in (value.__doc__ or ""), f"{name}: its docstring has no example"
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(MemoryFileSystem, "store", {})  # memory:// stands for a bucket
    monkeypatch.setattr(demo, "CROPS", {"train": 6, "validation": 1})  # of each photograph
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    output: list[str] = []
    for found in doctest.DocTestFinder(exclude_empty=True).find(value, name, globs={}):
        assert all(doctest.SKIP not in example.options for example in found.examples), f"{found.name}: skips a line"
        runner.run(found, out=output.append)
    assert not runner.failures, "".join(output)
