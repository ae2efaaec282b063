"""Drift: whether rows still look like the reference. Counts, tests, a detector over time, and an estimate of accuracy."""
