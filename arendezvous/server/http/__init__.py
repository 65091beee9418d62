"""The HTTP door: the same runs and keys as over TCP, as resources."""
