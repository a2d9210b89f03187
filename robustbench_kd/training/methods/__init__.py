"""Training methods, one file each: the loss of a batch."""
