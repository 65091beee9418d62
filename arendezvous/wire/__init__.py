"""The formats that cross a socket: sans-I/O, each parser fed with whatever bytes have come.

`native` is our session protocol; the `c10d` modules are the protocol of `torch.distributed.TCPStore`.
"""
