"""The report in headless Chromium: axe-core finds nothing, the keyboard reaches everything, filters and order are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semlens_audit import report
from semlens_audit.check_pages import Checks
from semlens_audit.figures import SCREEN
from semlens_audit.records import AuditRecord
from tests.e2e.browser import chromium, opened
from tests.golden.released_record import released
from tests.golden.sample_record import sample, small

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DESK = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def record() -> AuditRecord:
    return released(sample("shortcut"))


@pytest.fixture(scope="module")
def file(record: AuditRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.render_html(record), encoding="utf-8")
    return path


def violations(page: Any) -> list[str]:
    """What axe-core complains of, one line an element."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    # Run in the page's debugger, not as a script element: the page's policy admits no script but its own.
    page.evaluate((Path(str(axe.__file__)).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", RULES)
    assert len(found["passes"]) > 25
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found["violations"] for node in rule["nodes"]]


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of element and few of each: what axe-core looks at in seconds."""
    path = tmp_path_factory.mktemp("brief") / "report.html"
    path.write_text(report.render_html(released(small())), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_violation(browser: Any, brief: Path, scheme: str, viewport: dict[str, int]) -> None:
    with opened(browser, brief, viewport=viewport, color_scheme=scheme) as page:
        assert violations(page) == []


@pytest.mark.slow
def test_axe_finds_no_violation_in_a_whole_report(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK) as page:
        assert violations(page) == []


def test_axe_finds_no_violation_where_nothing_was_measured(browser: Any, tmp_path: Path) -> None:
    record = sample("not_measured")
    path = tmp_path / "report.html"
    path.write_text(report.render_html(record.model_copy(update={"class_layers": record.class_layers[:1]})), encoding="utf-8")
    with opened(browser, path, viewport=PHONE) as page:
        assert violations(page) == []


def test_axe_finds_no_violation_in_a_filtered_report(browser: Any, brief: Path) -> None:
    with opened(browser, brief, "#results?state=not_satisfied&sort=-value", viewport=DESK) as page:
        assert page.locator("#main[data-narrowed]").count() == 1
        page.locator("#fold").click()
        assert violations(page) == []


def test_axe_sees_what_is_wrong(browser: Any, brief: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    text = brief.read_text(encoding="utf-8").replace('<html lang="en">', "<html>").replace('for="filter-text"', "")
    path.write_text(text, encoding="utf-8")
    with opened(browser, path, viewport=DESK) as page:
        found = " ".join(violations(page))
        assert "html-has-lang" in found
        assert "label: " in found


@pytest.mark.parametrize("viewport", [DESK, PHONE, {"width": 320, "height": 640}], ids=["desk", "phone", "narrow"])
def test_no_page_scrolls_sideways(browser: Any, file: Path, viewport: dict[str, int]) -> None:
    with opened(browser, file, viewport=viewport) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_nothing_is_asked_of_a_network(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.get_by_label("Text", exact=True).fill("ruler")
        page.emulate_media(color_scheme="dark")
        page.emulate_media(media="print")
        page.wait_for_load_state("networkidle")
        assert page.requests == []
        assert page.complaints == []


def test_the_policy_admits_no_script_but_its_own(browser: Any, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    evil = "<script>document.title='taken'</script><img src='https://example.org/x.png' onerror=\"document.title='taken'\" alt='x'>"
    path.write_text(file.read_text(encoding="utf-8").replace("</main>", evil + "</main>"), encoding="utf-8")
    with opened(browser, path, viewport=DESK) as page:
        page.wait_for_load_state("load")
        assert page.title().startswith("Not satisfied: ")
        assert page.requests == ["csp https://example.org/x.png"]
        assert len([line for line in page.complaints if "Content Security Policy" in line]) >= 3


def shown(page: Any) -> list[str]:
    """Ids of the results that the matrix shows, in their order on the page."""
    rows = page.locator("#results tr[data-finding]:visible").evaluate_all("rows => rows.map(row => row.dataset.finding)")
    return [str(row) for row in rows]


def said(page: Any) -> str:
    return str(page.get_by_role("status").inner_text())


def test_filters_show_what_they_say(browser: Any, file: Path, record: AuditRecord) -> None:
    gate = record.gate
    assert gate is not None
    cases = {
        "Layer": ("layer4", {f.id for f in record.findings if f.layer == "layer4"}),
        "Concept": ("ruler", {f.id for f in record.findings if "ruler" in f.concepts}),
        "Severity": ("minor", {f.id for f in record.findings if f.severity == "minor"}),
        "Line of evidence": ("behavioural", {f.id for f in record.findings if f.line == "behavioural"}),
        "Release": ("waived", set(gate.waived)),
    }
    with opened(browser, file, viewport=DESK) as page:
        whole = shown(page)
        assert set(whole) == {f.id for f in record.findings}
        assert said(page) == f"All {len(whole)} results shown."
        for label, (value, expected) in cases.items():
            assert 0 < len(expected) < len(whole)
            page.get_by_label(label, exact=True).select_option(value)
            assert set(shown(page)) == expected, label
            assert said(page).startswith(f"{len(expected)} of {len(whole)} results shown.")
            page.get_by_role("button", name="Show all").click()
            assert shown(page) == whole


def test_states_filter_results_and_their_evidence(browser: Any, file: Path, record: AuditRecord) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.get_by_role("checkbox", name=re.compile("^Satisfied")).uncheck()
        page.get_by_role("checkbox", name=re.compile("^Inconclusive")).uncheck()
        page.get_by_role("checkbox", name=re.compile("^Not measured")).uncheck()
        expected = {f.id for f in record.findings if f.state == "not_satisfied"}
        assert set(shown(page)) == expected
        names = page.locator("article.finding:visible h3 .check").all_inner_texts()
        assert set(names) == {f.check for f in record.findings if f.state == "not_satisfied"}
        assert page.locator("#passed article.finding:visible").count() == 0
        assert page.locator("#passed .filtered").inner_text().startswith("0 of ")
        assert "state=not_satisfied" in page.url
        # A link to what is filtered away shows it.
        hidden = page.locator("#passed article.finding").first.get_attribute("id")
        page.evaluate("anchor => { location.hash = anchor }", hidden)
        page.locator(f"#{hidden}").wait_for(state="visible")
        assert len(shown(page)) == len(record.findings)


def test_text_narrows_and_its_absence_is_told(browser: Any, file: Path, record: AuditRecord) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.get_by_label("Text", exact=True).fill("COLOUR   chart")
        assert set(shown(page)) == {f.id for f in record.findings if "colour chart" in f.statement.lower()}
        page.get_by_label("Text", exact=True).fill("no such thing <b>")
        assert shown(page) == []
        assert said(page) == f"0 of {len(record.findings)} results shown."


def test_an_address_brings_back_the_view(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.get_by_label("Layer", exact=True).select_option("layer3")
        page.get_by_label("Order", exact=True).select_option("-value")
        fragment, first = page.evaluate("location.hash"), shown(page)
    with opened(browser, file, fragment, viewport=DESK) as page:
        assert shown(page) == first
        assert page.get_by_label("Layer", exact=True).input_value() == "layer3"
    for hostile in ("#results?layer=%3Cscript%3E&state=&sort=nonsense", "#%E0%A4%A", "#results?q=%", "#?concepts=" + "x" * 9000):
        with opened(browser, file, hostile, viewport=DESK) as page:
            assert page.complaints == []
            assert page.locator("#filters").is_visible()


def values(page: Any, attribute: str) -> list[list[float]]:
    """Per table of the matrix, the attribute of the first row of each check, in order; checks without a value left out."""
    found = page.locator("#results .matrix").evaluate_all(
        "(tables, name) => tables.map(table => [...table.querySelectorAll('tbody')]"
        ".map(body => body.querySelector('tr[data-finding]').dataset[name]).filter(text => text !== '').map(Number))",
        attribute,
    )
    return [list(map(float, one)) for one in found]


def test_headers_sort_both_ways_and_say_so(browser: Any, file: Path, record: AuditRecord) -> None:
    with opened(browser, file, viewport=DESK) as page:
        spec_order = shown(page)
        head = page.locator("#results .matrix").first.locator("th[data-sort=value]")
        button = head.get_by_role("button", name="Measured")
        button.click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert all(one == sorted(one) for one in values(page, "value"))
        assert any(len(set(one)) > 2 for one in values(page, "value"))
        button.click()
        assert head.get_attribute("aria-sort") == "descending"
        assert all(one == sorted(one, reverse=True) for one in values(page, "value"))
        last = page.locator("#results tr[data-finding][data-value='']")
        assert last.count() == sum(f.measurement.value is None for f in record.findings) > 0
        bodies = last.first.evaluate("row => [...row.closest('table').tBodies].indexOf(row.parentNode) + 1")
        assert bodies == last.first.evaluate("row => row.closest('table').tBodies.length")
        page.get_by_label("Order", exact=True).select_option("clearance")
        assert head.get_attribute("aria-sort") is None
        assert all(one == sorted(one) for one in values(page, "clearance"))
        page.get_by_role("button", name="Show all").click()
        assert shown(page) == spec_order


def test_clearance_agrees_with_the_state(record: AuditRecord) -> None:
    checks = Checks(record, SCREEN)
    for finding in record.findings:
        text = checks.marks(finding).clearance
        if finding.state == "not_measured":
            assert text == ""
        elif finding.state == "satisfied":
            assert float(text) > 0
        elif finding.state == "not_satisfied":
            assert float(text) < 0


def test_evidence_is_sorted_too(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.get_by_label("Order", exact=True).select_option("severity")
        order = {"critical": 0, "major": 1, "minor": 2}
        for name in ("attention", "passed"):
            found = page.locator(f"#{name} article.finding").evaluate_all(
                "all => all.map(one => one.querySelector('tr[data-finding]').dataset.severity)"
            )
            ranks = [order[one] for one in found]
            assert ranks == sorted(ranks)


def test_the_keyboard_alone_is_enough(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        seen: list[str] = []
        for _ in range(400):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "(() => { const a = document.activeElement; const style = getComputedStyle(a);"
                    " return [a.tagName, a.name || a.id || a.className || '', style.outlineStyle].join('|') })()"
                )
            )
            if seen[-1].startswith("BODY"):
                break
        stops = [one.rsplit("|", 1)[0] for one in seen]
        for wanted in ("INPUT|state", "SELECT|layer", "SELECT|sort", "INPUT|q", "BUTTON|fold", "BUTTON|sorter"):
            assert wanted in stops, wanted
        assert any(one.startswith("SUMMARY") for one in stops)
        assert all(one.endswith(("|solid", "|auto")) for one in seen if not one.startswith("BODY"))
        # Sorting and folding by keys.
        page.locator("#results .sorter").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#results th[aria-sort=ascending]").count() >= 1
        page.locator("#fold").focus()
        page.keyboard.press("Space")
        assert page.locator("#fold").get_attribute("aria-pressed") == "true"
        assert page.locator("details.proof[open]").count() == 0


def test_without_scripts_everything_is_there(browser: Any, file: Path, record: AuditRecord) -> None:
    with opened(browser, file, viewport=DESK, java_script_enabled=False) as page:
        assert not page.locator("#filters").is_visible()
        assert page.locator("#results tr[data-finding]").count() == len(record.findings)
        for part in ("#results tr[data-finding]", "article.finding", "img.crop"):
            assert page.locator(f"{part}:visible").count() == page.locator(part).count() > 0
        assert page.locator("button:visible").count() == 0


def test_print_shows_everything_whatever_was_filtered(browser: Any, file: Path, record: AuditRecord) -> None:
    with opened(browser, file, "#results?state=not_satisfied&sort=-value&q=ruler", viewport=DESK) as page:
        before = shown(page)
        page.locator("#fold").click()
        assert 0 < len(before) < len(record.findings)
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert len(shown(page)) == len(record.findings)
        assert page.locator("img.crop:visible").count() == page.locator("img.crop").count()
        assert not page.locator("#filters").is_visible()
        page.emulate_media(media="screen")
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert shown(page) == before
        assert page.locator("details.proof[open]").count() == 0


def test_contents_say_where_the_reader_is(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK, reduced_motion="reduce") as page:
        page.locator("#method").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('method').scrollIntoView()")
        page.locator(".contents a[href='#method'][aria-current=location]").wait_for()
        assert page.locator(".contents [aria-current]").count() == 1
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_crops_are_large_enough_to_judge(browser: Any, file: Path) -> None:
    for viewport in (DESK, PHONE):
        with opened(browser, file, viewport=viewport) as page:
            widths = page.locator("img.crop").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
            assert min(widths) >= 96


def test_forced_colours_keep_states_apart(browser: Any, file: Path) -> None:
    with opened(browser, file, viewport=DESK, forced_colors="active") as page:
        words = set(page.locator("#results .badge").all_inner_texts())
        assert any("Not satisfied" in one for one in words)
        borders = page.locator("#results .badge .glyph").evaluate_all("all => all.map(one => getComputedStyle(one).borderTopStyle)")
        assert set(borders) <= {"solid", "dashed"}
