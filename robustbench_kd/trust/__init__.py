"""Checks of how far a robust accuracy can be trusted; one file each, none of which calls a model itself."""
