"""What the code of a module tells, without running it."""
