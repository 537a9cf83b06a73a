"""Workers read from an object store however they are started, after this process has read from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from walloc_data import LatentDataset

pytestmark = [
    pytest.mark.object_store,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("credentials"),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_after_this_process_has(
    url: str, tmp_path: Path, ids_of: Callable[[torch.Tensor], list[int]], method: str
) -> None:
    dataset = LatentDataset(url, cache_folder=tmp_path)
    assert ids_of(dataset[0][0][None]) == [0]  # this process's connections and threads are there now
    num_workers = 2 if method == "fork" else 1  # the others import torch anew
    plain = DataLoader(dataset, batch_size=40, num_workers=num_workers, multiprocessing_context=method)
    assert [i for latents, _ in plain for i in ids_of(latents)] == list(range(320))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 20
