"""Headless Chromium on a report: where it is found, how it is started, and a watch on every request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "MISSING", "chromium", "opened"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "Chromium is not installed"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a network of its own, or a skipped test where there is none."""
    import pytest

    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, fragment: str = "", **options: Any) -> Iterator[Any]:
    """The report in a page of its own.

    `page.requests` lists what was asked for beside the file itself, `page.complaints` what the console said; every request
    that is neither the file nor a ``data:`` URI is refused.
    """
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []

    def decide(route: Any) -> None:
        url = route.request.url
        if url.split("#")[0] == file.as_uri():
            route.continue_()
        else:
            requests.append(url)
            route.abort()

    page.route("**/*", decide)
    # A request that the page's policy stops never reaches `decide`; it is listed with that reason.
    page.on("requestfailed", lambda request: requests.append(f"{request.failure} {request.url}"))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri() + fragment)
    page.requests, page.complaints = requests, complaints
    try:
        yield page
    finally:
        context.close()
