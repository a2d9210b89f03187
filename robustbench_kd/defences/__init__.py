"""Families of defences, one in each file: anything that maps images in [0, 1] to logits."""
