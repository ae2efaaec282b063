"""What the hub remembers: one database (SQLite or PostgreSQL, the same code), queries by noun."""
