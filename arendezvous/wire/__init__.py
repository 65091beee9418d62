"""The formats that cross a socket: sans-I/O, each parser fed with whatever bytes have come.

`native` is our session protocol, `c10d` that of `torch.distributed.TCPStore`, `http` the bodies and events of
the HTTP listener, `torch_state` the pickled state that stock nodes share. By `foreign` all of them
decode what others have made.
"""
