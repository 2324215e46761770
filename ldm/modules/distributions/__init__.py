"""Distributions that networks give."""
