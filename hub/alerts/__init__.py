"""Alerts to people: drift, drift that costs accuracy, and rollouts that were aborted."""
