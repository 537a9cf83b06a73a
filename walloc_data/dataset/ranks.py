"""Rank and world size of this process, determined when batches are drawn: a loader may be older than its group."""

import os

import torch

from walloc_data.errors import LoaderError

__all__ = ["RankInfo"]


class RankInfo:
    """(rank, world size) of this process, fixed by whoever made the loader or asked for at every pass.

    Asked for, it is torch.distributed's where that is initialised, else that of the environment variables RANK and
    WORLD_SIZE, which torchrun and the launchers of accelerate and Lightning set, else 0 of 1.

    Args:
        rank: of this process; None asks.
        world_size: goes together with rank.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise LoaderError("rank and world_size go together")
        self._given = None if rank is None or world_size is None else _checked(rank, world_size)
        self._used: tuple[int, int] | None = None

    def find(self) -> tuple[int, int]:
        """Return the present (rank, world size)."""
        if self._given is not None:
            return self._given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if world_size is None or (rank is None and world_size == "1"):
            return 0, 1
        if rank is None:
            raise LoaderError(
                f"WORLD_SIZE is {world_size} but RANK is not set, so this process's share of each batch is unknown: "
                "set both, initialise torch.distributed first, or pass rank and world_size"
            )
        try:
            return _checked(int(rank), int(world_size))
        except ValueError as error:
            raise LoaderError(
                f"RANK={rank} and WORLD_SIZE={world_size} are not a rank and a world size: {error}"
            ) from error

    def use(self) -> tuple[int, int]:
        """Return the present (rank, world size), or raise if it has changed since the first batch was drawn.

        Raises:
            LoaderError: it has changed, so that ranks have drawn the same samples, or left some out.
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
    if not 0 <= rank < world_size:
        raise LoaderError(f"rank {rank} is not in [0, {world_size})")
    return rank, world_size
