"""Changes to a database: append, add, compact, merge, import, verify."""
