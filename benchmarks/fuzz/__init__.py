"""Feeds bad inputs to the project: each must end in one clear line, run nothing, and write only where it may."""
