"""Looks at a defence before and beside the attacks."""
