"""Weights and configs to and from CompVis' code and diffusers."""
