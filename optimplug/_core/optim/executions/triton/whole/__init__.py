"""A rule for whole tensors as Triton kernels: a few launches for all of a batch."""
