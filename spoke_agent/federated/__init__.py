"""Taking part in a federated sum: what the hub asks, what this site's rules say, and one masked answer at most."""
