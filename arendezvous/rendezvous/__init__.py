"""One node's way through a rendezvous: joining, keeping alive, changes and leaving, over any backend.

`handler` is the abstract API, `driver` fulfils it; neither knows a concrete backend, store or server.
"""
