"""Measures ours beside the peers that are installed: what ``arendezvous bench`` runs.

Every contender is a process of its own, which is asked for one run at a time (`child`), so that contenders
take turns and a machine whose speed drifts does so for all of them. `parts` are the groups of measurements,
`report` is what they come to, and `tables`, `markdown` and `plot` show it.
"""
