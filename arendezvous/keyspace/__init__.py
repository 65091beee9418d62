"""Defines what a store means: `messages` can be asked, `keyspace` answers, `grants` say who may ask what.

`host` carries answers to the clients that share one keyspace.
"""
