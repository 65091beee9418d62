"""Journals, each fulfilling `coordinator.journal`: in memory, in a directory, in etcd."""
