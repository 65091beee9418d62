"""Stores in etcd, by its API of version 3 and by that of version 2."""
