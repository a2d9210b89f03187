"""Training methods, one file each, as those of `distill` but without a teacher.

Their options are the recipe itself.
"""
