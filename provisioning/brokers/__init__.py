"""The message broker of a hub and of a region: configuration, access list, process."""
