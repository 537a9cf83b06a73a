"""Fetching shards before workers need them: a few threads in the main process of each rank.

Workers and ranks share the cache folder, so a shard is fetched once a machine, whoever asks first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from walloc_data.dataset.batching import Batching
from walloc_data.dataset.sharded import BatchSource
from walloc_data.errors import WallocDataError
from walloc_data.storage import DaemonThreads

__all__ = ["prefetching"]

_CONNECTIONS = 4


@contextmanager
def prefetching(samples: BatchSource, batching: Batching, *, epoch: int, start: int) -> Iterator[Callable[[int], None]]:
    """Fetch the shards of batches to come, in the order of their first use.

    Args:
        samples: what the rows belong to.
        start: the first batch of this pass.

    Yields:
        A function to call with each batch number as it is handed out; it lets the fetching go on.
    """
    ahead = samples.num_prefetch_shards
    if not ahead:
        yield lambda number: None
        return
    threads = DaemonThreads(_CONNECTIONS, name="walloc-data-fetch")
    first_used: dict[int, int] = {}  # shard: batch
    cursor = start

    def fetch(shard: int) -> None:
        # The worker that needs the shard will ask again, and raise where it matters: data on the way stays usable.
        with suppress(WallocDataError):
            samples.fetch(shard)

    def reached(number: int) -> None:
        nonlocal cursor
        while cursor < batching.num_batches and sum(batch > number for batch in first_used.values()) < ahead:
            for shard in np.unique(samples.shards(batching.batch(epoch, cursor).rows)).tolist():
                if shard not in first_used:
                    first_used[shard] = cursor
                    threads.submit(fetch, shard)
            cursor += 1

    try:
        reached(start)
        yield reached
    finally:
        threads.close()
