"""Audit what a vision model has learned: declarative concept specs, measured evidence, verdicts with intervals."""

from semlens_audit import image_formats

__version__ = "0.1.0"

image_formats.restrict()
