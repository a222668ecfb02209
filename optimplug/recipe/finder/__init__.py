"""A rate to begin with, found on the model itself: one sweep, after which all is as before."""
