"""The U-Net, and the encoder and decoder of first stages."""
