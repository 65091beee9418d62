"""The backends: where the state of a rendezvous is kept, each behind the port of `port`."""
