"""Where a hub's files lie and what it is configured with."""
