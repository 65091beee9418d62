"""The process of one of our members, which is killed while it does nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio

import arendezvous as ar


async def main(url: str, run_id: str, nodes: int, grace: float, options: dict[str, Any]) -> None:
    """Meets the others and waits for its end."""
    rdzv = ar.open_rendezvous(
        url,
        run_id=run_id,
        min_nodes=nodes - 1,
        max_nodes=nodes,
        local_addr="127.0.0.1",
        disconnect_grace=grace,
        is_host=False,
        **options,
    )
    async with rdzv:
        await rdzv.next_rendezvous()
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), json.loads(sys.argv[5]))
