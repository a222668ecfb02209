"""Callbacks: ``optimplug.callbacks.lightning`` and ``optimplug.callbacks.huggingface``.

Each imports its trainer, so neither is imported here.
"""
