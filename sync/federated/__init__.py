"""One-shot sums over many sites of which the hub learns the total and nothing else (docs/residency.md tells against whom)."""
