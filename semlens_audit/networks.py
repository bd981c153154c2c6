"""Architectures from timm, torchvision or own code, randomly initialised; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # timm and open_clip must never fetch weights behind the user's back

import torch

from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.plan import ModelSource

__all__ = ["build", "nearest_layer"]


def build(source: ModelSource, *, code_file: Path | None = None, allow_code: bool = False) -> torch.nn.Module:
    """Build the architecture, randomly initialised (own code: as its function returns it), in eval mode on the CPU.

    Parameters
    ----------
    source
        Which architecture, with which arguments.
    code_file
        Resolved path of the Python file for ``source: code``.
    allow_code
        Whether the user allowed running Python code that the audit names.

    Raises
    ------
    SubjectError
        ``unknown-architecture`` (suggesting the nearest), ``bad-arguments``, ``bad-code``.
    UsageError
        ``code-not-allowed``.
    ValueError
        Another source than timm, torchvision and code.
    """
    if source.source == "code":
        model = _from_code(source, code_file, allow_code)
    elif source.source == "timm":
        model = _from_timm(source)
    elif source.source == "torchvision":
        model = _from_torchvision(source)
    else:
        raise ValueError(f"a model of source {source.source} is no architecture to build; see subject.load_model")
    return model.to(device="cpu").float().eval().requires_grad_(False)


def _from_timm(source: ModelSource) -> torch.nn.Module:
    import semlens_audit._torchvision  # noqa: F401  (timm imports torchvision)

    import timm  # isort: skip

    name = source.name.split(".")[0]
    if not timm.is_model(name):
        _unknown("timm", source.name, timm.list_models())
    arguments = {**source.arguments, "pretrained": False}
    return _call(lambda: timm.create_model(name, **arguments), source)


def _from_torchvision(source: ModelSource) -> torch.nn.Module:
    import semlens_audit._torchvision  # noqa: F401

    from torchvision import models  # isort: skip

    known = models.list_models(module=models)
    if source.name not in known:
        _unknown("torchvision", source.name, known)
    arguments = {**source.arguments, "weights": None}
    if "weights_backbone" in arguments:
        arguments["weights_backbone"] = None
    if source.name in {"googlenet", "inception_v3"}:
        arguments.setdefault("init_weights", False)
    return _call(lambda: models.get_model(source.name, **arguments), source)


def _from_code(source: ModelSource, code_file: Path | None, allow_code: bool) -> torch.nn.Module:
    if not allow_code:
        raise UsageError(
            "code-not-allowed",
            f"The audited model is built by Python code ({source.name}), which would run on this machine.",
            "Read that file; if you trust it, run again with --allow-code.",
        )
    if code_file is None or not code_file.is_file():
        raise SubjectError(
            "bad-code",
            f"The Python file of {source.name!r} does not exist.",
            "Write path/to/file.py:function.",
            file=str(code_file) if code_file else None,
        )
    import semlens_audit._torchvision  # noqa: F401  (the file may well import torchvision)

    function_name = source.name.rpartition(":")[2]
    name = f"_semlens_subject_{hashlib.sha256(str(code_file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, code_file)
    if spec is None or spec.loader is None:
        raise SubjectError(
            "bad-code", "The file cannot be imported as Python.", "Its name must end in .py.", file=str(code_file)
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(code_file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = error.msg if isinstance(error, SyntaxError) else error
        line, column = _position(error, code_file)
        raise SubjectError(
            "bad-code",
            f"Importing the file failed: {type(error).__name__}: {what}.",
            "Mend the file.",
            file=str(code_file),
            line=line,
            column=column,
        ) from error
    finally:
        sys.path.remove(str(code_file.parent))
    function = getattr(module, function_name, None)
    if not callable(function):
        near = get_close_matches(function_name, [n for n in vars(module) if not n.startswith("_")], n=1)
        raise SubjectError(
            "bad-code",
            f"The file has no function {function_name!r}.",
            f"Did you mean {near[0]!r}?" if near else "Name a function that returns the network.",
            file=str(code_file),
        )
    model = _call(lambda: function(**source.arguments), source)
    if not isinstance(model, torch.nn.Module):
        raise SubjectError(
            "bad-code",
            f"{source.name} returned {type(model).__name__}, not a torch.nn.Module.",
            "Return the network.",
            file=str(code_file),
        )
    return model


def _position(error: Exception, code_file: Path) -> tuple[int | None, int | None]:
    """Line and column of the file at which importing it failed, as far as known."""
    file = str(code_file.absolute())  # as the interpreter names it
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno, error.offset
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return (lines[-1] if lines else None), None


def _call(make: Callable[[], Any], source: ModelSource) -> Any:
    try:
        return make()
    except (UsageError, SubjectError):
        raise
    except Exception as error:
        raise SubjectError(
            "bad-arguments",
            f"Building {source.name!r} with {source.arguments} failed: {type(error).__name__}: {error}.",
            "Mend `model.arguments` in the audit.",
        ) from error


def _unknown(library: str, name: str, known: list[str]) -> None:
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = (
        f"Did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"It has {len(known)} architectures; none is like it."
    )
    raise SubjectError("unknown-architecture", f"{library} has no architecture {name!r}.", hint)


def nearest_layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The sub-module called `name`.

    Raises
    ------
    SubjectError
        ``unknown-layer``, suggesting the nearest names.
    """
    modules = {key: module for key, module in model.named_modules() if key}
    if name in modules:
        return modules[name]
    near = get_close_matches(name, list(modules), n=3, cutoff=0.4)
    top = [key for key, _ in model.named_children()]
    hint = (
        f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Its top-level modules: {', '.join(top)}."
    )
    raise SubjectError("unknown-layer", f"The model has no layer {name!r}.", hint)
