"""Updates and receipts as files, for sites without a network."""
