"""Our own engine: attacks on a slot batch, without a pass for a decided example."""
