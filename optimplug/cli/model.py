"""The model that a command is given: what builds it, or a config of transformers."""

from __future__ import annotations

import importlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from optimplug.cli.shared import bad_usage
from optimplug.errors import ArgumentError

__all__ = ["build_model"]

Model = Annotated[
    str,
    typer.Option(
        metavar="MODULE:FACTORY|FOLDER",
        help="What builds the model, without arguments; or a folder (or file) with the config.json "
        "of a transformers model, which is built without its weights.",
    ),
]
OnMeta = Annotated[
    bool,
    typer.Option("--meta", help="Run the factory on the meta device, where a model has no size."),
]


def build_model(given: str, meta: bool) -> nn.Module:
    """Return the model of a ``package.module:factory``, or of a folder with a config."""
    module, colon, factory = given.partition(":")
    # What looks like a path is taken for one, so that the error says that there is no such folder.
    if Path(given).exists() or (not colon and os.sep in given):
        # Only now, because it needs transformers, and takes seconds to load.
        from optimplug.huggingface import model_of_config

        with bad_usage("--model", ArgumentError):
            return model_of_config(given)
    if not module or not factory:
        message = f"must be package.module:factory, or a folder with a config.json (got {given!r})"
        raise _bad_model(message)
    try:
        model = _built(module, factory, meta)
    except Exception as error:  # the user's own code, which can fail in any way
        raise _bad_model(f"{given!r} failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise _bad_model(f"{given!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _built(module: str, factory: str, meta: bool) -> Any:
    found = getattr(importlib.import_module(module), factory)
    if isinstance(found, nn.Module):
        return found
    # Around the call alone: what the module itself makes as it is imported keeps its values.
    with torch.device("meta") if meta else nullcontext():
        return found()


def _bad_model(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--model")
