"""Which of several processes this is, and the few things they tell each other.

Sampling needs none of it but the rank: shards are files.  Under torchrun the processes also wait
for each other before evaluation, and bring the features of their part of the images together; on
the CPU (gloo), because that is where the scores are computed.
"""

import atexit
import os
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

# Ranks may end sampling days apart, and one that waits must not give up before.
WAIT_FOR_OTHERS = timedelta(days=30)

T = TypeVar("T")


def worker() -> tuple[int, int]:
    """(rank, world) from torchrun's or srun's environment; (0, 1) without them.

    Raises ValueError for numbers that make no sense.  A batch script that calls the command without srun is one process, whatever SLURM_NTASKS says.
    """
    if "RANK" in os.environ:
        return _place("RANK", "WORLD_SIZE")
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    return 0, 1


def _place(rank: str, world: str) -> tuple[int, int]:
    """The numbers in two variables of the environment; ValueError unless 0 <= rank < world."""
    texts = os.environ.get(rank, "0"), os.environ.get(world, "1")
    try:
        place = int(texts[0]), int(texts[1])
        check_rank(*place)
    except ValueError:
        raise ValueError(
            f"{rank}={texts[0]} and {world}={texts[1]} in the environment are no place among "
            f"processes: start with torchrun or srun, or unset {rank} and {world}"
        ) from None
    return place


def check_rank(rank: int, world: int) -> None:
    """Raise ValueError unless 0 <= rank < world."""
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in 0..{world - 1} (world {world}), got {rank}")


def local_rank() -> int:
    """The place of this process among those of its machine, which picks its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def share(part: int, parts: int) -> tuple[int, int]:
    """(rank, world) of this process when the work is also cut into `parts` commands.

    Raises ValueError unless 0 <= part < parts.
    """
    if type(parts) is not int or parts < 1:
        raise ValueError(f"parts must be an integer of at least 1, got {parts!r}")
    if type(part) is not int or not 0 <= part < parts:
        raise ValueError(f"part must be in 0..{parts - 1} (parts={parts}), got {part!r}")
    rank, world = worker()
    return part * world + rank, parts * world


def connected() -> bool:
    """Whether the processes can talk to each other: torchrun started several of them.

    Waits for all of them when first called.
    """
    if worker()[1] == 1 or "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        return False
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=WAIT_FOR_OTHERS)
        atexit.register(dist.destroy_process_group)
    return True


def first_process() -> bool:
    """Of connected processes the first writes and tells; others are each for themselves."""
    return not connected() or worker()[0] == 0


def wait_for_all() -> None:
    """Return when every connected process has come here."""
    if connected():
        dist.barrier()


def agree(value: T) -> T:
    """The first process's value, in all connected processes."""
    if not connected():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T] | None:
    """The values of all connected processes by rank, in the first one; None in the others."""
    if not connected():
        return [value]
    rank, world = worker()
    values: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(value, values, dst=0)
    return cast(list[T] | None, values)
