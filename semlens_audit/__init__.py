"""Audit what a vision model has learned: declarative concept specs, measured evidence, verdicts with intervals."""

__version__ = "0.1.0"
