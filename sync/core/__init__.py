"""Identities, states and reasons, time, files, retries and TLS."""
