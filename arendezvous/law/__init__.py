"""The law of the rendezvous: pure and synchronous; time is an argument.

`state` and `operations` are its vocabulary, `events` says what comes of them; `machine` applies operations
and says when to wake. `rounds` and `lists` do its bookkeeping, `ranking` orders members. What a round carries
has modules of its own: `rules`, `seats` and `blocks` (roles and units), `facts`, `rosters`; `barriers` and
`steps` are for members that work together, `orders`, `decisions` and `steering` for operators. `image` makes
rows of a run and a run of rows, `recall` and `restoring` bring back what was forgotten; `status` and `words`
tell of it.
"""
