"""The U-Net of CompVis' retrieval-augmented-diffusion-models."""

from typing import ClassVar

from ldm.modules.diffusionmodules import openaimodel


class UNetModel(openaimodel.UNetModel):
    """The U-Net of ``ldm`` with another meaning of two arguments.

    ``num_heads_upsample`` has no effect: the decoder's attention has as many heads as the encoder's. With ``n_embed``,
    the ``id_predictor`` ends in a 3x3 convolution with padding 1 instead of a 1x1 convolution.
    """

    upsample_heads: ClassVar[bool] = False
    id_kernel: ClassVar[int] = 3
