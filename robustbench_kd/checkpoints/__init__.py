"""Third floor: cards, and weights that are loaded strictly and safely."""
