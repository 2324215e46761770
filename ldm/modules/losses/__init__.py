"""Losses of the first stages, one file each; the KL loss also under the name CompVis' configs use."""

from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator

__all__ = ["LPIPSWithDiscriminator"]
