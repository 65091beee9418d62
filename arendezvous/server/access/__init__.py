"""Decides who may do what at a server, and how much: tokens, limits, and what comes from one address."""
