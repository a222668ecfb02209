"""The implementation behind ``optimplug.optim``; import the public names from there."""
