"""What malmen does, as Python calls: where language model, mathematics and ledger meet."""
