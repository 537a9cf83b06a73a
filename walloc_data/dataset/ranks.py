"""Rank and world size of this process, determined when batches are drawn."""

import os

import torch

from walloc_data.dataset.arguments import check_integer
from walloc_data.errors import LoaderError

__all__ = ["RankInfo"]


class RankInfo:
    """Rank and world size of this process, either given or determined at every pass.

    They are taken from torch.distributed if it is initialised, else from the environment variables RANK and WORLD_SIZE
    (set by torchrun and the launchers of accelerate and Lightning), else they are 0 and 1. A loader may be created
    before its process group.

    Args:
        rank: rank of this process; None determines it.
        world_size: number of ranks; required with `rank`.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise LoaderError("pass both rank and world_size, or neither")
        self._given = None if rank is None or world_size is None else _checked(rank, world_size)
        self._used: tuple[int, int] | None = None

    def find(self) -> tuple[int, int]:
        """Return the current (rank, world size)."""
        if self._given is not None:
            return self._given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if world_size is None or (rank is None and world_size == "1"):
            return 0, 1
        if rank is None:
            raise LoaderError(
                f"WORLD_SIZE is {world_size} but RANK is not set, so this process's part of each batch is unknown: "
                "set both, initialise torch.distributed first, or pass rank and world_size"
            )
        try:
            return _checked(int(rank), int(world_size))
        except ValueError as error:
            raise LoaderError(
                f"the environment variables RANK={rank} and WORLD_SIZE={world_size} are invalid: {error}"
            ) from error

    def use(self) -> tuple[int, int]:
        """Return the current (rank, world size).

        Raises:
            LoaderError: it has changed since the first batch, so that ranks would repeat or miss samples.
        """
        place = self.find()
        if self._used is None:
            self._used = place
        elif place != self._used:
            raise LoaderError(
                f"this process is rank {place[0]} of {place[1]} now and was rank {self._used[0]} of {self._used[1]} "
                "when this loader drew its first batch: call torch.distributed.init_process_group before the first "
                "batch, make a new loader afterwards, or pass rank and world_size"
            )
        return place


def _checked(rank: int, world_size: int) -> tuple[int, int]:
    rank, world_size = check_integer("rank", rank), check_integer("world_size", world_size, low=1)
    if not 0 <= rank < world_size:
        raise LoaderError(f"rank {rank} is not in [0, {world_size})")
    return rank, world_size
