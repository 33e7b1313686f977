"""Flows and command line: thin tables of contents over `pipeline`."""
