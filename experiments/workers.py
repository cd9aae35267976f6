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

    A batch script that calls the command without srun is one process, whatever SLURM_NTASKS says.
    Raises ValueError where the environment makes no sense: a rank beyond the last does no work.
    """
    names = ("RANK", "WORLD_SIZE")
    if "RANK" not in os.environ:
        if "SLURM_STEP_NUM_TASKS" not in os.environ:
            return 0, 1
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if names[0] not in os.environ:
        raise ValueError(f"{names[1]} is set, but {names[0]} is not: `unset {names[1]}`")
    rank, world = _number(names[0], 0), _number(names[1], 1)
    if not 0 <= rank < world:
        raise ValueError(
            f"{names[0]}={rank} is no process of {names[1]}={world}: start the command with "
            f"torchrun or srun, or `unset {' '.join(names)}`"
        )
    return rank, world


def _number(name: str, default: int) -> int:
    """An integer of the environment; ValueError for anything else."""
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the environment variable {name} must be an integer, got {text!r}: `unset {name}`"
        ) from None


def local_rank() -> int:
    """The place of this process among those of its machine, which picks its GPU."""
    return _number("LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID", 0)


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


def check_share(rank: int, world: int) -> None:
    """ValueError unless this is one of `world` processes, 0 <= rank < world."""
    if type(rank) is not int or type(world) is not int or not 0 <= rank < world:
        raise ValueError(f"rank must be an integer in 0..world-1 (world={world}), got {rank!r}")


def connected() -> bool:
    """Whether the processes can talk to each other: torchrun started several of them.

    Waits for all of them when first called.
    """
    if worker()[1] == 1 or "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        return False
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo", timeout=WAIT_FOR_OTHERS)
        except ValueError as error:
            raise ValueError(
                f"MASTER_ADDR is set, but the processes cannot meet ({error}): start them with torchrun, "
                "or `unset MASTER_ADDR`"
            ) from None
        atexit.register(dist.destroy_process_group)
    return True


def first_process() -> bool:
    """Of connected processes the first writes and tells; others are each for themselves."""
    return not connected() or worker()[0] == 0


def say(text: str) -> None:
    """Print at once, in the first of the processes that were started together."""
    if worker()[0] == 0:
        print(text, flush=True)


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
