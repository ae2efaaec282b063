"""The hub's database (SQLite or PostgreSQL, the same code), one module of queries for each noun."""
