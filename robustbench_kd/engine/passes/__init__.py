"""Everything that calls a model during a search, and makes that fast."""
