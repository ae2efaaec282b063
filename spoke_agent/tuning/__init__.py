"""Adapting a model's head to a site, without torch: features, fit, gate, and the adapters that came of it."""
