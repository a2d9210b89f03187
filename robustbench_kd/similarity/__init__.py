"""How far a student resembles its teacher: agreement, transfer, saliency, invariances, robustness retained."""
