"""Measures arendezvous beside its peers, and beside another checkout of itself: ``python -m benchmarks``.

Every contender is a program of `processes`, which is asked for one run at a time, so that contenders take
turns and a machine whose speed drifts does so for all of them. `contenders` starts them, `parts` and `growth`
are the groups of measurements; `report` is what they come to, `beside` compares two checkouts by it,
`capacity` calculates from it what one server carries, and `output` shows it.
"""
