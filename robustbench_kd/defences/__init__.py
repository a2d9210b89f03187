"""Kinds of defence: anything that maps images in [0, 1] to logits; one family per file."""
