r"""A training script for torchrun: nothing in it knows of arendezvous.

Start it on each node::

    torchrun --nnodes=1:4 --nproc-per-node=1 --max-restarts=3 --rdzv-id=job1 \
        --rdzv-backend=arendezvous --rdzv-endpoint=node0:29400 torchrun_job.py
"""

# ruff: noqa: T201 - an example prints what it finds

import torch
import torch.distributed as dist


def main() -> None:
    """Sums a tensor over all workers."""
    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: the sum is {total.item():g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
