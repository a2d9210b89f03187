"""Training methods, one file each, as those of `distill` but without a teacher: their options are the recipe itself."""
