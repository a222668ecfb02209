"""Schedulers: a closed form each, and what walks the groups with it."""
