"""How similar a student is to its teacher: answers, attacks, attention, invariances, robustness."""
