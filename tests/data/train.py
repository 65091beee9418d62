"""A training script for tests: one checked all_reduce, then what its first argument says.

With a port as the second argument it tells its node and the size of its world there, and waits for an answer
before it ends.
"""

import os
import socket
import sys

import torch
import torch.distributed as dist

mode, port = sys.argv[1], int(sys.argv[2])
node, restarts = os.environ["NODE"], os.environ["TORCHELASTIC_RESTART_COUNT"]

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
expected = size * (size + 1) / 2
if total.item() != expected:
    sys.exit(f"the sum is {total.item()}, expected {expected}")
print(f"{node}: rank {rank} of {size} in {os.environ['TORCHELASTIC_RUN_ID']}, restarts {restarts}")  # noqa: T201

if port:
    with socket.create_connection(("127.0.0.1", port)) as gate:
        gate.sendall(f"{node} {size}\n".encode())
        if not gate.recv(1):
            sys.exit("the gate was closed")
if mode == "fail" or (mode == "fail-once" and restarts == "0"):
    os._exit(7)
dist.destroy_process_group()
