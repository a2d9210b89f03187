"""Asks a finished run again: its stored images, its claims."""
