"""Ground floor: errors, names, threats, records and statistics; imports no torch."""
