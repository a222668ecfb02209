"""Checkpoints: what one holds, what resuming from it changes, and carrying that out."""
