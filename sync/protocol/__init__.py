"""What hub and spoke send each other: messages, topics, and everything that may leave a site."""
