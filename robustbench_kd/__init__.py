"""Robust accuracy of image classifiers, measured and qualified; the command line is `rkd`."""
