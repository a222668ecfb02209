"""Where a parameter stands: the layers of a model, bottom to top, in one tower or several."""
