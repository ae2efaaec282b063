"""What a site knows: rows, predictions and labels, encrypted, bounded, erasable. Nothing in here can leave (see `outbox/`)."""
