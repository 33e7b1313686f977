"""The Python code of a callable model: which files it is, and their digest, found without importing them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.card import ModelCard, digest_of
from pipeline.errors import ModelError

_imported: dict[str, tuple[ModuleType, str]] = {}
"""Module -> (what was imported, digest of its code on disk at that time)."""


def with_code(card: ModelCard) -> ModelCard:
    """`card` with the digest of the code that it calls, unless its `version` stands for that.

    ModelError where the code cannot be found, or is not the code that the card names.
    """
    if card.adapter != "callable" or (card.version is not None and card.code_sha256 is None):
        return card
    found = code_digest(card)
    if card.code_sha256 not in (None, found):
        raise ModelError(
            f"model {card.name!r} calls {function_name(card)}, whose code is not what its card was written for: its digest is "
            f"{found}, the card says {card.code_sha256}. Restore the code, or correct code_sha256 in model.json"
        )
    return card.model_copy(update={"code_sha256": found})


def load_function(card: ModelCard) -> Any:
    """The function that `card` names, imported. ModelError where that fails, or its code is not what the plan was made for."""
    name = function_name(card)
    module, attribute = name.split(":")
    found = None if card.code_sha256 is None else code_digest(card)
    if found != card.code_sha256:
        raise ModelError(
            f"model {card.name!r} calls {name}, whose code here is not what the plan was made for: its digest is {found}, "
            f"planned was {card.code_sha256}. The mask would mix two models. Install the same code on every worker, and run again"
        )
    try:
        imported = importlib.import_module(module)
        function = getattr(imported, attribute)
    except (ImportError, AttributeError) as e:
        raise ModelError(
            f"model {card.name!r} calls {name}, which cannot be imported: {e}. Install its package on every worker"
        ) from e
    _check_imported(card, module, imported, found)
    return function


def function_name(card: ModelCard) -> str:
    """`package.module:function` of a callable model; ModelError where its card does not say so."""
    name = card.architecture.get("function")
    if not isinstance(name, str) or name.count(":") != 1:
        raise ModelError(f"model {card.name!r}: architecture.function is {name!r}, it must be 'package.module:function'")
    return name


def code_digest(card: ModelCard) -> str:
    """SHA-256 of the code of a callable model: all .py files of the package that its function lies in, below the topmost one
    that is no namespace, or the one file of a module outside of packages. ModelError where there is no source."""
    module = function_name(card).split(":")[0]
    root, files = _sources(card, module)
    try:
        return digest_of([[name, hashlib.sha256((root / name).read_bytes()).hexdigest()] for name in files])
    except OSError as e:
        raise ModelError(f"the code of model {card.name!r} cannot be read: {e}. Correct its permissions") from e


def _sources(card: ModelCard, module: str) -> tuple[Path, list[str]]:
    """(folder, relative names of the files in it) of the code that `module` is a part of."""
    importlib.invalidate_caches()
    name, *rest = module.split(".")
    spec = _spec(name, None)
    while spec is not None and spec.origin is None and spec.submodule_search_locations and rest:  # a namespace
        part = rest.pop(0)
        name = f"{name}.{part}"
        spec = _spec(name, list(spec.submodule_search_locations))
    if spec is None:
        raise ModelError(
            f"model {card.name!r} calls {function_name(card)}, and there is no module {name!r} here, so that nothing would tell "
            "masks of its old code from those of its new. Install it here too, or state a `version` in model.json"
        )
    origin = Path(spec.origin or "")
    root = origin.parent
    if not spec.submodule_search_locations:
        files, own = [origin.name], [origin]
    else:
        files = _python_files(root)
        place = root.joinpath(*rest)
        own = [place.with_suffix(".py"), place / "__init__.py"]
    if not any(path.suffix == ".py" and path.is_file() for path in own):
        raise ModelError(
            f"model {card.name!r} calls {function_name(card)}, of which there is no Python source here ({spec.origin}): nothing "
            "would tell masks of its old code from those of its new. State a `version` in model.json, and change it with the code"
        )
    return root, files


def _spec(name: str, locations: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Where a module lies. Neither a module outside of packages nor one in a namespace is imported to find out."""
    try:
        if locations is None:
            return importlib.util.find_spec(name)
        return importlib.machinery.PathFinder.find_spec(name, locations)
    except (ImportError, ValueError):
        return None


def _python_files(root: Path) -> list[str]:
    found = [
        os.path.relpath(Path(folder) / name, root) for folder, _, names in os.walk(root) for name in names if name.endswith(".py")
    ]
    return sorted(Path(name).as_posix() for name in found)


def _check_imported(card: ModelCard, module: str, imported: ModuleType, found: str | None) -> None:
    """ModelError where this process goes on running code that it imported before it was changed on disk."""
    if found is None:
        return
    before, digest = _imported.get(module, (None, found))
    if before is imported and digest != found:
        raise ModelError(
            f"model {card.name!r}: the code of {function_name(card)} was changed after this process had imported it, so that the "
            "old code would make masks in the new one's name. Start the program, or its workers, again"
        )
    if before is not imported:
        _imported[module] = imported, found
