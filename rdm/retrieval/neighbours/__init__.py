"""Neighbour tables of training pictures, and the popularity counted from them."""
