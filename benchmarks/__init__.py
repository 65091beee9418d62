"""Measures arendezvous."""
