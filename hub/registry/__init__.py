"""OCI distribution 1.1 over a blob store: push, pull, Range, tags, referrers, delete with garbage collection."""
