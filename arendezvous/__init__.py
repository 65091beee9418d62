"""arendezvous."""
