"""Download of shards before workers need them, by a few threads in the main process of each rank.

Workers and ranks share the cache folder, so a shard is downloaded once per machine.
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
    """Context: download the shards of later batches, in the order of their first use.

    Args:
        samples: data set that the rows belong to.
        start: first batch of this pass.

    Yields:
        A function to call with the number of each yielded batch, which allows further downloads.
    """
    limit = samples.num_prefetch_shards
    if not limit:
        yield lambda number: None
        return
    threads = DaemonThreads(_CONNECTIONS, name="walloc-data-fetch")
    first_used: dict[int, int] = {}  # shard: batch
    cursor = start

    def fetch(shard: int) -> None:
        # Errors are ignored here: the worker that needs the shard tries again and raises them.
        with suppress(WallocDataError):
            samples.fetch(shard)

    def reached(number: int) -> None:
        nonlocal cursor
        while cursor < batching.num_batches and sum(batch > number for batch in first_used.values()) < limit:
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
