"""Fuzzers: whatever comes from outside is understood or refused, soon, and others are served meanwhile.

Each target feeds one place with inputs that are nearly right. It runs for a moment with the other tests, and
for as long as one likes by ``python -m tests.fuzz --minutes 60 [TARGET ...]``.
"""
