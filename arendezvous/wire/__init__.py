"""The formats that cross a socket: sans-I/O, each parser fed with whatever bytes have come."""
