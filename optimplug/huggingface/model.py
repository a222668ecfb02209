"""A model from its config alone."""

from __future__ import annotations

import os
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel

from optimplug.errors import ArgumentError
from optimplug.huggingface.internals import model_without_weights

__all__ = ["model_of_config"]


def model_of_config(path: str | os.PathLike[str]) -> PreTrainedModel:
    """Build the model that a ``config.json`` describes, on the meta device: shapes, no weights.

    Nothing is fetched, and no code beside the config is run. The class is the first of the config's
    ``architectures``.

    Args:
        path: a model's folder, or its ``config.json``.

    Raises:
        ArgumentError: there is no such file, or it describes no model of transformers.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise ArgumentError(f"must be a folder with a config.json, or such a file (got {path})")
    try:
        config = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ArgumentError(f"{file} is no config of transformers: {error}") from None
    name = next(iter(config.architectures or ()), None)
    found = getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ArgumentError(
            f"{file}: 'architectures' must name a model class of transformers (got {name!r})"
        )
    try:
        return model_without_weights(found, config)
    except Exception as error:  # a model's own code, with values that it may not expect
        reason = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"{file}: {name} cannot be built: {reason}") from None
