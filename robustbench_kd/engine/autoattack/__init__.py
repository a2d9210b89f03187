"""The AutoAttack package behind the same protocol."""
