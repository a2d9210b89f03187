"""Experiment trackers: one function per file that hands a run to another tool."""
