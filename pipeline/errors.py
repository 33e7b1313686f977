"""One small family of errors: each says what was wrong, the values, what it would have caused and what to do."""

from __future__ import annotations


class GigamaskError(Exception):
    """What a user is told instead of a traceback."""

    exit_code = 1


class ConfigError(GigamaskError):
    """The configuration or the command line cannot mean anything."""

    exit_code = 2


class PlanError(GigamaskError):
    """What was asked cannot work on this image, model or machine; found before anything was spent."""

    exit_code = 2


class SourceError(GigamaskError):
    """An image cannot be opened or read."""


class TruthError(GigamaskError):
    """Reference labels cannot be read, or do not fit the image that they are meant for."""


class ModelError(GigamaskError):
    """A model folder is incomplete, does not match its card, or does not do what its card says."""


class StoreError(GigamaskError):
    """A mosaic store or ledger is missing, damaged, or already there."""


class ClusterError(GigamaskError):
    """Workers cannot be had, or were lost."""
