"""The ways to run a rule over a batch, and the choice among them."""
