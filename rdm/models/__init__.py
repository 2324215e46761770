"""The models that are conditioned on neighbours, and the small CLIP."""
