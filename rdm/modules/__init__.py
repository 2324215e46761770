"""From neighbours to context tokens, and the networks that read them."""
