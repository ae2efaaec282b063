"""The documents that a package carries: specification, feature contract, evidence."""
