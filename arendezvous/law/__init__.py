"""The law of the rendezvous: pure and synchronous; time is an argument.

`state` and `operations` are its vocabulary, `machine` applies operations and says when to wake, `rounds` and
`lists` do its bookkeeping, `ranking` orders members, `barriers` and `steps` are for members that work
together, `image` makes rows of a run and a run of rows; `status` and `words` tell of it.
"""
