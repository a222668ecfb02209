"""What a recipe says: reads it, checks its form, and points at what is wrong in it."""
