"""Architectures, one file each.

`build(classes=..., channels=...)` returns a network for normalised images.
"""
