"""CompVis' retrieval-augmented models and files."""
