"""Stores: the port and its implementations, each in a folder or module of the name of its backend."""
