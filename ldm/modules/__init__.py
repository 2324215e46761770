"""Building blocks of networks: attention, losses, encoders, the moving average of weights."""
