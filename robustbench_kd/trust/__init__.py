"""Checks of how far to trust a robust accuracy, one in each file; no check calls a model itself."""
