"""Losses of the first stages, one in each file. CompVis' configs import the loss of KL autoencoders from here."""

from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator

__all__ = ["LPIPSWithDiscriminator"]
