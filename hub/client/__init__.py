"""The operator's client of the hub's API: HTTP, publishing, signing."""
