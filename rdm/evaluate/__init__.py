"""Evaluation of models and pictures: one function for each metric, and reports that record how figures were computed.

Names are imported when they are first used, so a script's ``--help`` loads no torch.
"""

from ldm.util import names_when_used

_HOME = {
    "LIBRARIES": "protocol",
    "Moments": "metrics",
    "frechet_distance": "metrics",
    "Reconstruction": "first_stage",
    "evaluation_data": "first_stage",
    "perceptual_distance": "first_stage",
    "reconstruction": "first_stage",
}
__all__ = sorted(_HOME)
__getattr__ = names_when_used(__name__, _HOME)
