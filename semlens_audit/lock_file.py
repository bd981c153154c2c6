"""The file of a lock (pre-registration): what it freezes, how it is written and read, and how two of them are compared.

A lock holds content digests of everything a verdict depends on (model, test data, pairs, attributes, example images, foundation
model, code that measures and decides) and what spec and audit ask, as plain values, so that a difference can be named. It does not
hold what neither asks nor measures: titles, persons, declared limitations, citations, hazards, crosswalk entries, batch size, and
where files lie (`FREE`); those may change under a lock. The digests of both files' bytes are noted beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError
from semlens_audit.frozen import Frozen
from semlens_audit.plan import AuditPlan
from semlens_audit.wording import join, shorten

__all__ = ["FREE", "Earlier", "Lock", "asked", "differences", "load", "lock_file", "parse", "read", "write"]

MAX_BYTES = 4_000_000
"""Largest file that is read as a lock; the lock of a spec of 2 MB, the largest that is read, stays below it."""

FREE: dict[str, frozenset[str]] = {
    "spec": frozenset({"title"}),
    "class": frozenset({"title", "description"}),
    "concept": frozenset({"title", "source", "hazard", "examples"}),
    "check": frozenset({"supports"}),
    "audit": frozenset(
        {"title", "spec", "responsible", "limitations", "qualification", "store", "reports", "examples_root"}
    ),
    "subject": frozenset({"name", "version", "classes"}),
    "model": frozenset({"weights"}),
    "data": frozenset({"path", "labels", "attributes", "pairs", "description"}),
    "foundation_model": frozenset({"name", "weights", "statement"}),
    "measurement": frozenset({"batch_size"}),
}
"""Part of spec or audit -> its keys that may change under a lock: words that ask nothing, and places of files, whose content is locked
by digest."""

_IDENTITIES = {
    "model": "the audited model (weights, architecture or code)",
    "classes": "the class names of the model",
    "data": "the test data",
    "attributes": "the attributes of the test data",
    "groups": "the groups of the test data",
    "pairs": "the counterfactual pairs",
    "examples": "the example images of the concepts",
    "foundation_model": "the foundation model",
}
_SHOWN = 60
_NAMED = 3


class Earlier(Frozen):
    """A lock that another one replaced."""

    sha256: str
    created: str
    runs: int = Field(ge=0)
    """Runs under it that the store had seen when it was replaced."""


class Lock(Frozen):
    """What was frozen, when, and after how many looks."""

    schema_version: Literal["1.0"] = "1.0"
    audit: str
    created: str
    """UTC, ISO 8601."""
    note: str | None = Field(default=None, max_length=4000)
    tool: str
    """Name and version of the tool, with the revision of a source checkout."""
    files: dict[str, str]
    """``spec`` and ``audit`` -> SHA-256 of the file's bytes, for information: their words may change, see `FREE`."""
    identities: dict[str, str | None]
    """What a verdict rests on -> content digest; none where the audit has no such thing."""
    weights_sha256: str | None = None
    """Of the model's tensors, as reports print it, where the store had met the model before; for information."""
    code: dict[str, str]
    """Module that measures or decides -> digest of its code."""
    asked: dict[str, Any]
    """What spec and audit ask, without what is `FREE`."""
    runs_seen: int = Field(ge=0)
    """Runs of this audit that the store had seen when it was locked."""
    history: tuple[Earlier, ...] = ()
    """Locks that this one replaced, oldest first."""

    @field_validator("created")
    @classmethod
    def _moment(cls, text: str) -> str:
        if datetime.fromisoformat(text).tzinfo is None:
            raise ValueError("the time has no time zone")
        return text

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of the lock."""
        return digest(self.model_dump(mode="json"))


def lock_file(audit_file: Path | str) -> Path:
    """Where the lock of an audit lies: beside its file, ``AUDIT.lock.json`` for ``AUDIT.yaml``."""
    return Path(audit_file).with_suffix(".lock.json")


def asked(plan: AuditPlan) -> dict[str, Any]:
    """What spec and audit ask, by name rather than by place, without what is `FREE`."""
    spec = plan.spec.model_dump(mode="json", by_alias=True, exclude=set(FREE["spec"]))
    spec["classes"] = {name: _without(one, "class") for name, one in spec["classes"].items()}
    spec["concepts"] = {one["id"]: _without(one, "concept") for one in spec["concepts"]}
    spec["checks"] = {one["id"]: _without(one, "check") for one in spec["checks"]}
    audit = plan.audit.model_dump(mode="json", by_alias=True, exclude=set(FREE["audit"]))
    for part in ("subject", "data", "foundation_model", "measurement"):
        audit[part] = _without(audit[part], part)
    model = _without(audit["subject"]["model"], "model")
    if model["source"] == "code":  # the file is locked by its content, wherever it lies
        model["name"] = model["name"].rpartition(":")[2]
    audit["subject"]["model"] = model
    return {"spec": spec, "audit": audit}


def _without(value: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: one for name, one in value.items() if name not in FREE[part]}


def write(lock: Lock, path: Path) -> None:
    """Write a lock so that a reader never sees half of it; the file ends with the digest of everything before it."""
    text = json.dumps({**lock.model_dump(mode="json"), "sha256": lock.sha256}, indent=1, ensure_ascii=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:  # never through a link that lies there
            stream.write(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read(path: Path) -> Lock:
    """Read a lock.

    Raises
    ------
    IntegrityError
        ``no-lock``: there is none; ``lock-damaged``: it is none, or was changed since it was written.
    """
    return parse(load(path), path)


def load(path: Path) -> bytes:
    """Bytes of a lock's file; see `read` for what it raises."""
    if path.exists() and not path.is_file():
        raise _damaged("it is no file", path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "Lock the audit first: `semlens-audit lock AUDIT.yaml`."
        raise IntegrityError("no-lock", f"The lock cannot be read: {error.strerror}.", hint, file=str(path)) from error
    if len(content) > MAX_BYTES:
        raise _damaged(f"it is larger than {MAX_BYTES:,} bytes", path)
    return content


def _damaged(why: str, path: Path) -> IntegrityError:
    hint = "Restore the file as `semlens-audit lock` wrote it, or lock the audit anew (remove the file first)."
    return IntegrityError("lock-damaged", f"The lock is damaged or was changed: {why}.", hint, file=str(path))


def parse(content: bytes, path: Path) -> Lock:
    """The lock that those bytes hold; `path` is where they came from. Raises what `read` does."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged("it is no JSON in UTF-8", path) from error
    if not isinstance(value, dict) or not isinstance(value.get("sha256"), str):
        raise _damaged("it has no digest of its own", path)
    stated = value.pop("sha256")
    try:
        lock = Lock.model_validate_json(json.dumps(value, allow_nan=False))
        own = lock.sha256
    except (ValidationError, ValueError, RecursionError) as error:
        raise _damaged("it does not hold what a lock holds", path) from error
    if stated != own:
        raise _damaged(f"its digest is {shorten(own)}, not {shorten(stated)} as it says", path)
    return lock


def differences(lock: Lock, identities: Mapping[str, str | None], code: Mapping[str, str], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between a lock and what is there now, one clause each; empty where nothing does.

    Parameters
    ----------
    identities, code, now
        See `Lock.identities`, `Lock.code`, `Lock.asked`.
    """
    found = []
    for name in [*_IDENTITIES, *sorted(set(lock.identities) - set(_IDENTITIES))]:
        old, new = lock.identities.get(name), identities.get(name)
        if old != new:
            found.append(f"{_IDENTITIES.get(name, name)}: {_digest(old)} was locked, {_digest(new)} is there")
    found += _unlike(lock.asked, now, ())
    changed = sorted(name for name in {*lock.code, *code} if lock.code.get(name) != code.get(name))
    if changed:
        named = join(changed) if len(changed) <= _NAMED else f"{', '.join(changed[:_NAMED])} and {len(changed) - _NAMED} more"
        found.append(f"the tool's code that measures or decides ({named}): locked with {lock.tool}")
    return tuple(found)


def _digest(sha256: str | None) -> str:
    return "none" if sha256 is None else shorten(sha256)


def _unlike(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Clauses on every value that is not the same, by its place."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            place = (*path, str(name))
            if name not in new:
                yield f"{'.'.join(place)} was {_shown(old[name])}, is gone"
            elif name not in old:
                yield f"{'.'.join(place)} was not there, is {_shown(new[name])}"
            else:
                yield from _unlike(old[name], new[name], place)
    elif digest(old) != digest(new):
        yield f"{'.'.join(path)} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
