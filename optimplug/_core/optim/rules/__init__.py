"""The update rules, one family of optimizers in each file."""
