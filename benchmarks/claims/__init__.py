"""The claims of Blattmann et al. 2022, Retrieval-Augmented Diffusion Models, on the emoji data.

``runs`` says what is trained, ``cases`` what is asked of the models, ``measure`` and ``cost`` make the figures,
``report`` sets them beside what the paper says.
"""
