"""Fourth floor: reads run directories and compares them; imports no torch."""
