"""The server: one coordinator, and the doors that lead to it."""
