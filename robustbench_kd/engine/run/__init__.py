"""Asked, planned, under way: the request, the plan with its stages and identity, the run."""
