"""Optimizers: rules written once, and what executes them."""
