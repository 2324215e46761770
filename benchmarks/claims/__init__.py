"""Measures the claims of Blattmann et al. 2022, "Retrieval-Augmented Diffusion Models", on the emoji data.

``runs`` lists the models to train, ``cases`` the ways to sample from them, ``measure`` and ``cost`` compute figures,
and ``report`` compares them with what the paper says.
"""
