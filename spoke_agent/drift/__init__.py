"""Does the model still see what it was built on? Counts, tests, a detector over time, and an estimate of accuracy."""
