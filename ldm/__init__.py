"""Latent diffusion: first stages, denoisers, samplers; knows nothing of retrieval."""
