"""The law of the rendezvous: pure and synchronous; time is an argument.

`state` and `operations` are its vocabulary, `events` says what comes of them, `machine` how it works.
"""
