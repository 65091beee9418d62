"""The checks behind ``arendezvous doctor``: what would stop a node from joining, scheme by scheme."""
