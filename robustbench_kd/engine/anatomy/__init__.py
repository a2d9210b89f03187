"""Looks into a defence that declares nothing, and makes surfaces from what it finds."""
