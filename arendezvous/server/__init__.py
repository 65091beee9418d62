"""The server: one coordinator, and the listeners that lead to it."""
