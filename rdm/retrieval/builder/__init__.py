"""Builds a database, on one machine or on a Ray cluster."""
