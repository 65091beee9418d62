"""Backends that share one state with stock nodes by compare-and-set: ``c10d://`` and ``etcd-v2://``."""
