"""A synchronous training script with gloo that brings its own rendezvous; start it once on each node.

python train_sync.py tcp://node0:29400 2
"""

# ruff: noqa: T201 - an example prints what it finds

import sys

import torch
import torch.distributed as dist

from arendezvous.sync import open_rendezvous


def main(url: str, nodes: int) -> None:
    """Meets, sums a tensor over all nodes, and says so."""
    with open_rendezvous(url, run_id="train", min_nodes=nodes) as rdzv:
        info = rdzv.next_rendezvous()
        where = info.bootstrap_store_info()  # rank 0 serves a fresh store in each round
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not say that it exports this
            where.master_addr, where.master_port, is_master=False
        )
        dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.world_size)
        total = torch.tensor([info.rank + 1.0])
        dist.all_reduce(total)
        print(f"rank {info.rank} of {info.world_size}: the sum is {total.item():g}")
        dist.destroy_process_group()
        info.store.barrier("done", info.world_size)  # rank 0's store is needed until everybody is done


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
