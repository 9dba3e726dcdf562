"""What would spoil a result, found before it does: duplicates, quality, shortcuts, balance, labels."""
