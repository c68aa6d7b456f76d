"""The embedded world's model: how it is trained, what it knows, and what its residual stream holds."""
