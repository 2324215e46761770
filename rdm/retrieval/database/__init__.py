"""The rows of a database: vectors, metadata, and marks of removed rows."""
