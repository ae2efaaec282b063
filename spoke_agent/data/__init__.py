"""The rows, predictions and labels of a site: encrypted, bounded, erasable. Nothing here can leave the site (see `outbox/`)."""
