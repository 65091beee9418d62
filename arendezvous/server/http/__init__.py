"""The HTTP listener: the same runs and keys as over TCP, as resources."""
