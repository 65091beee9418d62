"""Any synchronous program, without torch: nodes meet, divide work, and add up what they found.

python no_torch.py tcp://node0:29400 3
"""

# ruff: noqa: T201 - an example prints what it finds

import sys

from arendezvous.sync import open_rendezvous

NUMBERS = range(1, 101)


def main(url: str, nodes: int) -> None:
    """Adds up this node's share of the numbers, then everybody's."""
    with open_rendezvous(url, run_id="sum", min_nodes=nodes) as rdzv:
        info = rdzv.next_rendezvous()
        share = sum(NUMBERS[info.rank :: info.world_size])
        info.store.add("total", share)
        info.store.barrier("added", info.world_size)
        print(f"rank {info.rank} of {info.world_size}: {info.store.get('total').decode()} in all")
        info.store.barrier("read", info.world_size)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
