"""Toy road signs: a second world of images whose attributes are known, so that the instrument is not tuned to the first.

It shares no rendering code with `semlens_audit.phantom`, and takes the other route through the tool: an image-only foundation
model, and concepts that are defined by example crops.
"""
