"""The retrieval-augmented autoregressive model."""
