"""Templates become one offline HTML file: style sheets and typefaces inside it, everything escaped, nothing asked of any network."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from semlens_audit.plain_text import visible
from semlens_audit.resources import templates_dir

__all__ = ["ON_SCREEN", "environment", "render", "replace", "report_file", "script_hash"]

ON_SCREEN = ("style.css", "screen.css")
"""Style sheets of a page that is looked at on a screen."""

_FACES = (
    ("Audit Sans", 400, "normal", "audit-sans-regular.woff2"),
    ("Audit Sans", 400, "italic", "audit-sans-italic.woff2"),
    ("Audit Sans", 600, "normal", "audit-sans-semibold.woff2"),
    ("Audit Mono", 400, "normal", "audit-mono-regular.woff2"),
)


def report_file(name: str) -> Path:
    """A file beside the templates of reports: a style sheet, a script, a typeface."""
    return _folder() / name


@functools.cache
def _folder() -> Path:
    return templates_dir() / "report"


def _shown(value: object) -> object:
    """What a template prints: plain text with hidden characters written out; markup made here stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def environment() -> jinja2.Environment:
    """Templates: everything escaped, hidden characters written out, an unknown name an error.

    Those of a report go by their bare name, those of other rooms by folder and name: ``atlas/base.html.j2``.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([_folder(), _folder().parent]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _fonts() -> str:
    faces = []
    for family, weight, style, name in _FACES:
        data = base64.b64encode(report_file(f"fonts/{name}").read_bytes()).decode("ascii")
        faces.append(
            f'@font-face{{font-family:"{family}";font-weight:{weight};font-style:{style};'
            f'src:url(data:font/woff2;base64,{data}) format("woff2")}}'
        )
    return "\n".join(faces)


def script_hash(text: str) -> str:
    """The source that lets a page's policy run this script and no other (Content Security Policy Level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def render(template: str, sheets: tuple[str, ...], script: str = "", **values: Any) -> str:
    """Any page through the template of that name, with its style sheets, typefaces and script inside it.

    Parameters
    ----------
    template
        As `environment` names it.
    sheets
        Style sheets of the folder of reports, in order; one of another room by folder and name.
    script
        What runs on the page, which is complete without it.
    **values
        What the template prints.
    """
    found = (report_file(sheet) if "/" not in sheet else _folder().parent / sheet for sheet in sheets)
    style = "\n".join([_fonts(), *(path.read_text(encoding="utf-8") for path in found)])
    return environment().get_template(template).render(style=style, script=script, script_hash=script_hash(script), **values)


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader sees the old bytes or the new ones."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
