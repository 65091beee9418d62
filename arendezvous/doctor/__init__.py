"""The checks behind ``arendezvous doctor``: what would stop a node from joining, scheme by scheme.

`checks` has what all of them share; `tcp`, `http`, `c10d` and `etcd` have one function each that makes all
checks of an endpoint. Which of them a scheme has, its entry in `arendezvous.schemes` says.
"""
