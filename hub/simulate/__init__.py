"""Runs a rollout's rule on virtual spokes before it reaches real ones."""
