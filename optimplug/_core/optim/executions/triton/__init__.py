"""A rule as a Triton kernel: one launch for all of a batch, one before it for the norm."""
