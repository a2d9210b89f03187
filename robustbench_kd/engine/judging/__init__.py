"""What counts as broken, rejected or correct; images as text for the ledger."""
