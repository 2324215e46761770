"""Which parts of a picture become rows."""
