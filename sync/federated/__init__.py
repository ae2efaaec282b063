"""One-shot sums over many sites: the hub learns the total and nothing else (docs/residency.md says against whom that holds)."""
