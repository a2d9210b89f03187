"""First floor: contracts, geometry, losses and the oracle; pure mathematics on tensors."""
