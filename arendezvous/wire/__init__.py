"""The formats that cross a socket: sans-I/O, each parser fed with whatever bytes have come.

`native` is our session protocol; the `c10d` modules are the protocol of `torch.distributed.TCPStore`. Of what
goes over HTTP, `http_bodies` has the bodies that are about runs, and `http` how keys and pairs are written;
`http1` and `sse` read answers and streams of events.
"""
