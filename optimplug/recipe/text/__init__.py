"""The text of a recipe: how it is read, what form it has, and where in it something is wrong."""
