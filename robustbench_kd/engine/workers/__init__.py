"""Lets several processes decide the examples of one run."""
