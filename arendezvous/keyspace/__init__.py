"""Defines what a store means."""
