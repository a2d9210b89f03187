"""Attacks in ask and tell form: they hold no model and decide nothing; one file each."""
