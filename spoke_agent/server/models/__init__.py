"""Loaded models: which versions serve, how requests become batches, how an engine is chosen and opened."""
