"""What happens in a Trainer, as events with names of their own, and what a recipe does at each."""
