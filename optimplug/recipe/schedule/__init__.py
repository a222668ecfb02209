"""When: phases of a run, and the one scheduler that they make."""
