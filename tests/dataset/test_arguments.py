"""Arguments of a wrong kind are one error that names the argument and its value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from walloc_data import LatentDataset, create_latent_model
from walloc_data.dataset import LatentMixture
from walloc_data.errors import LoaderError, ModelError, StateError


@pytest.fixture(scope="module")
def root(make_dataset: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arguments")
    make_dataset(folder, num_samples=12)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": 3}, "columns is a list of names, not 3"),
        ({"target": ["age", "caption"]}, r"target is the name of one column or None, not \['age', 'caption'\]"),
        ({"num_threads": "a"}, "num_threads must be an integer, not 'a'"),
        ({"window_shards": True}, "window_shards must be an integer, not True"),
        ({"max_cache_bytes": "1 GB"}, "max_cache_bytes must be an integer, not '1 GB'"),
        ({"storage_options": 3}, "storage_options must be a dict or None, not 3"),
        ({"transform": 3}, "transform must be a function or None, not 3"),
        ({"as_dict": "yes"}, "as_dict must be True or False, not 'yes'"),
        ({"shuffle": "no"}, "shuffle must be True or False, not 'no'"),
        ({"mirror": 1}, "mirror must be True or False, not 1"),
        ({"seed": "a"}, "seed must be an integer, not 'a'"),
        ({"seed": None}, "seed must be an integer, not None"),
        ({"url": None}, "url must be a path, a URL or a Store, not None"),
    ],
)
def test_an_argument_of_a_data_set(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        LatentDataset(**({"url": root} | arguments))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data.split(0.8, seed="x"), "seed must be an integer, not 'x'"),
        (lambda data: data.subset(fraction="x"), r"fraction must be in \(0, 1\], not 'x'"),
        (lambda data: data.subset(fraction=True), r"fraction must be in \(0, 1\], not True"),
        (lambda data: data.subset(seed=None, fraction=0.5), "seed must be an integer, not None"),
        (lambda data: data.subset(keys=["a", "a"]), "keys names 'a' twice"),
        (lambda data: data.loader(batch_size=2, num_workers=-1), "num_workers must be at least 0, not -1"),
        (lambda data: data.loader(batch_size=2, num_workers="2"), "num_workers must be an integer, not '2'"),
        (lambda data: data.loader(batch_size=2, prefetch_batches=0), "prefetch_batches must be at least 1, not 0"),
        (lambda data: data.loader(batch_size=2, drop_last="no"), "drop_last must be True or False, not 'no'"),
        (lambda data: data.loader(batch_size=2, class_balanced="no"), "class_balanced must be True or False, not 'no'"),
        (lambda data: data.batch_sampler(batch_size=2, bucket_by_shape=0), "bucket_by_shape must be True or False"),
        (lambda data: data.loader(batch_size=2, rank="0", world_size=2), "rank must be an integer, not '0'"),
        (lambda data: data.subset(relabel="no"), "relabel must be True or False, not 'no'"),
        (lambda data: data.batch_sampler(batch_size=2, drop_last=1), "drop_last must be True or False, not 1"),
        (
            lambda data: LatentMixture(data),
            r"a mixture takes a list of LatentDatasets, such as \[a, b\], not LatentDataset",
        ),
        (
            lambda data: LatentMixture([data, data], weights="ab"),
            "weights must be 2 numbers, one per data set, not 'ab'",
        ),
        (lambda data: LatentMixture([data], seed="a"), "seed must be an integer, not 'a'"),
        (lambda data: LatentMixture([data], num_samples=0), "num_samples must be at least 1, not 0"),
    ],
)
def test_an_argument_of_a_part_a_loader_or_a_mixture(root: Path, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        make(LatentDataset(root))


def test_a_key_that_is_no_text(root: Path) -> None:
    data = LatentDataset(root)
    with pytest.raises(LoaderError, match=f"a key is text, such as '{data.keys[0]}', not 3"):
        data.by_key(3)  # type: ignore[arg-type]


def test_a_number_of_classes_below_zero(root: Path) -> None:
    with pytest.raises(ModelError, match="num_classes must be from 0 to 16777216, not -1"):
        create_latent_model("test_convnext", dataset=LatentDataset(root), num_classes=-1)


@pytest.mark.parametrize("state", [None, [], "state"])
def test_what_is_no_state_is_said(root: Path, state: Any) -> None:
    loader = LatentDataset(root).loader(batch_size=2)
    with pytest.raises(StateError, match=f"not a loader state: {type(state).__name__}, but state_dict"):
        loader.load_state_dict(state)


def test_integers_of_numpy_are_integers(root: Path) -> None:
    data = LatentDataset(root, seed=np.int64(1), num_threads=np.int32(1), shuffle=np.bool_(True))
    loader = data.loader(batch_size=np.int64(3), num_workers=np.int64(0))
    assert loader.num_samples == 12
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()
    mixture = LatentMixture([data], seed=np.int64(1), num_samples=np.int64(6)).loader(batch_size=3)
    assert json.loads(json.dumps(mixture.state_dict()))["num_batches"] == 2
    sampler = data.batch_sampler(batch_size=3)
    next(iter(sampler))
    assert json.loads(json.dumps(sampler.state_dict(position=np.int64(1))))["position"] == 1
    with pytest.raises(LoaderError, match=r"position must be an integer, not 1\.0"):
        sampler.state_dict(position=1.0)
