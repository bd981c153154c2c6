"""The pictures of the documentation: what its commands write, at full size, on the phantom.

    .venv/bin/python -m tests.pictures --write

carries out what ``reports/know-the-model/`` has its reader do, in a folder like a checkout, photographs the pages and terminals with
headless Chromium, and replaces the pictures there. Without ``--write`` they stay in the folder, to be looked at. With ``--work FOLDER``
the folder is kept, and the next time what is indexed, trained or split there is not made again.
"""

from __future__ import annotations

import argparse
import html
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.documentation import FOLDER, PAGES, ROOT, Step, steps
from tests.e2e.browser import CHROMIUM, MISSING, opened

__all__ = ["LARGEST", "PICTURES", "Picture", "main"]

LARGEST = 150_000
"""Most bytes of a picture."""

_QUALITIES = (82, 75, 70, 65, 60, 50)
_AUDITS = ("audits/phantom-shortcut.yaml", "audits/phantom-clean.yaml")
_MARGIN = 24
_GROUP = ":nth-match(section.evidence, 1) > h3"
"""Heading of a page's first group of components."""
_RULER = "section.evidence:has(> h3:has-text('Ruler'))"
_UNIT = "[id='component-layer3.virtual.units-{}']"
_TERMINAL = (
    "body { margin: 0; background: #fff; color: #1a1a1a; } pre { margin: 0; padding: 20px 24px; width: max-content; "
    "font: 13px/1.45 'DejaVu Sans Mono', monospace; } b { color: #00558c; font-weight: normal; }"
)


@dataclass(frozen=True)
class Picture:
    """One picture.

    Parameters
    ----------
    name
        Its file, without the ending.
    command
        How the command begins that it shows: one that stands on a page.
    page
        HTML file that the command writes; empty: what it prints is shown.
    first, last
        CSS selectors on the page: from the top of the first element to the bottom of the last.
    lines
        Of what is printed, at most so many lines are shown; 0: all.
    """

    name: str
    command: str
    page: str = ""
    first: str = "main"
    last: str = "main"
    lines: int = 0


def _article(number: int) -> str:
    return f":nth-match(article.component, {number})"


PICTURES = (
    Picture("search", 'search audits/phantom-shortcut.yaml "ruler marks" --html', "found.html", "h1", _article(2)),
    Picture("search-clean", 'search audits/phantom-clean.yaml "ruler marks" --html', "found-clean.html", "h1", "table.hits"),
    Picture("label", "label audits/phantom-shortcut.yaml", "labels.html", "h1", "table.hits tbody tr:nth-child(12)"),
    Picture("label-card", "label audits/phantom-shortcut.yaml", "labels.html", _article(5), _article(5)),
    Picture("describe", "describe audits/phantom-shortcut.yaml", "melanoma.html", "h1", ":nth-match(table, 1)"),
    Picture("describe-group", "describe audits/phantom-shortcut.yaml", "melanoma.html", _GROUP, _article(1)),
    Picture("graph", "describe audits/phantom-layers.yaml", "graph.html", "#graph", "section[aria-labelledby=graph] svg"),
    Picture("draft", "draft audits/phantom-narrow.yaml", lines=34),
    Picture("measures", "measures", "measures.html", "h1", ":nth-match(section, 2) .plot"),
    Picture("compare", "compare audits/phantom-clean.yaml", "compare.html", "h2", ":nth-match(.plot, 1)"),
    Picture("compare-learned", "compare audits/phantom-clean.yaml", "compare.html", _GROUP, _article(1)),
    Picture("train", "sae train", lines=12),
    Picture("latents", "describe audits/phantom-latents.yaml", "latents.html", "h2", ":nth-match(table, 1)"),
    Picture("latents-group", "describe audits/phantom-latents.yaml", "latents.html", f"{_RULER} > h3", f"{_RULER} article"),
    Picture("split", "split", lines=20),
    Picture("unit-first", "label audits/phantom-units.yaml", "units.html", _UNIT.format(66), _UNIT.format(66)),
    Picture("unit-second", "label audits/phantom-units.yaml", "units.html", _UNIT.format(67), _UNIT.format(67)),
    Picture("surprising", "surprising audits/phantom-narrow.yaml", "surprising.html", "h1", _article(1)),
)


def _prepare(root: Path) -> None:
    """A folder like a checkout: the phantom's audits and specs, and a run of each, which `make demo` has made."""
    for folder in ("audits", "specs"):
        if not (root / folder).is_dir():
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("ham10000*", "photographs*", "imagenet*"))
    for audit in _AUDITS:
        _run(root, Step(("semlens-audit", "run", audit, "--quiet")))


def _run(root: Path, step: Step) -> str:
    """Carry out a command of a page and give what it printed."""
    environment = {**os.environ, "COLUMNS": "116", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "semlens_audit", *step.words[1:]]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3) or (done.returncode and step.words[1] != "run"):
        raise SystemExit(f"{step.command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(f"{step.command}", flush=True)
    return done.stdout if step.words[1:3] != ("sae", "train") else done.stderr + done.stdout


def _kept(root: Path, step: Step, asked: Sequence[Picture]) -> bool:
    """Whether a command has written its file already and what it printed is there: trained and split once, it is kept."""
    if "--out" not in step.words:
        return False
    file = root / step.words[step.words.index("--out") + 1]
    if file.exists() and all((root / f"{picture.name}-terminal.html").exists() for picture in asked):
        return True
    file.unlink(missing_ok=True)
    return False


def _terminal(root: Path, picture: Picture, command: str, printed: str) -> Path:
    """A page that shows a command and what it printed."""
    lines = printed.rstrip().splitlines()
    shown = "\n".join(line.rstrip() for line in (lines[: picture.lines] if picture.lines else lines))
    more = "\n…" if picture.lines and len(lines) > picture.lines else ""
    body = f"<main><pre><b>$ {html.escape(command)}</b>\n{html.escape(shown + more)}</pre></main>"
    file = root / f"{picture.name}-terminal.html"
    file.write_text(f'<!DOCTYPE html><meta charset="utf-8"><style>{_TERMINAL}</style>{body}', encoding="utf-8")
    return file


def _photograph(browser: Any, file: Path, picture: Picture) -> bytes:
    """The part of a page that matters, as WebP of at most `LARGEST` bytes."""
    with opened(browser, file, viewport={"width": 930, "height": 1000}, device_scale_factor=1.25, color_scheme="light") as page:
        top = page.locator(picture.first).first.bounding_box()
        bottom = page.locator(picture.last).first.bounding_box()
        if top is None or bottom is None:
            raise SystemExit(f"{picture.name}: {file.name} has no {picture.first if top is None else picture.last}")
        terminal = not picture.page
        margin = 0 if terminal else _MARGIN
        area = page.locator("pre" if terminal else "main").first.bounding_box()
        clip = {
            "x": max(0, area["x"] - margin),
            "y": max(0, top["y"] - margin),
            "width": area["width"] + 2 * margin,
            "height": bottom["y"] + bottom["height"] - top["y"] + 2 * margin,
        }
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
    exact = _webp(shot, lossless=True)
    for quality in _QUALITIES:
        made = _webp(shot, quality=quality)
        if len(made) <= LARGEST:
            return min(exact, made, key=len)
    raise SystemExit(f"{picture.name}: more than {LARGEST:,} bytes; show less of {file.name}")


def _webp(shot: Image.Image, **how: Any) -> bytes:
    made = io.BytesIO()
    shot.save(made, "WEBP", method=6, **how)
    return made.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all pictures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these; default: all")
    parser.add_argument("--write", action="store_true", help="put them beside the pages")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="folder to work in, kept")
    parser.add_argument("--again", action="store_true", help="show what the commands wrote last time in the folder")
    chosen = parser.parse_args(arguments)
    if CHROMIUM is None:
        raise SystemExit(MISSING)
    unknown = set(chosen.names) - {picture.name for picture in PICTURES}
    if unknown:
        raise SystemExit(f"no such picture: {', '.join(sorted(unknown))}")
    root = (chosen.work or Path(tempfile.mkdtemp(prefix="pictures-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    wanted = [picture for picture in PICTURES if not chosen.names or picture.name in chosen.names]
    shown: dict[str, Path] = {}
    if not chosen.again:
        _prepare(root)
    for step in [step for page in PAGES for step in steps(page.read_text(encoding="utf-8"))]:
        if step.file and not chosen.again:
            step.write(root)
        if not step.words or step.words[0] != "semlens-audit":
            continue
        asked = [picture for picture in wanted if step.command.startswith(f"semlens-audit {_words(picture.command)}")]
        if chosen.names and not asked and not {"run", "index", "--out"} & set(step.words):
            continue
        printed = None if chosen.again or _kept(root, step, asked) else _run(root, step)
        for picture in asked:
            terminal = root / f"{picture.name}-terminal.html"
            if printed is not None and not picture.page:
                _terminal(root, picture, step.command, printed)
            shown[picture.name] = root / picture.page if picture.page else terminal
    _photograph_all(wanted, shown, FOLDER if chosen.write else root)


def _words(command: str) -> str:
    return shlex.join(shlex.split(command))


def _photograph_all(wanted: Sequence[Picture], shown: dict[str, Path], folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for picture in wanted:
            if picture.name not in shown:
                raise SystemExit(f"{picture.name}: no page has a command that begins with: {picture.command}")
            made = _photograph(browser, shown[picture.name], picture)
            (folder / f"{picture.name}.webp").write_bytes(made)
            print(f"{folder / picture.name}.webp: {len(made):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
