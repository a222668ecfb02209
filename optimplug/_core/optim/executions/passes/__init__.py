"""Programs for whole tensors: how they are cut into passes, and these written as C."""
