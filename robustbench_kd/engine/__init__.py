"""Fourth floor: runs attacks against a defence and decides, itself, what is broken."""
