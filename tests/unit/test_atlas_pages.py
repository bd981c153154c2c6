from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from semlens_audit import rendering
from semlens_audit.atlas.cards import CardReference, ComponentCard
from semlens_audit.atlas.pages import longest_share, percent, render_page, write_page
from semlens_audit.errors import UsageError
from semlens_audit.pages import Fact

PAGE = """{% extends "atlas/base.html.j2" %}{% import "atlas/macros.j2" as a with context %}{% block content %}
{% for card in cards %}{% call a.component_card(card, 2, longest) %}<p>more</p>{% endcall %}{% endfor %}{% endblock %}"""


def jpeg(seed: int, side: int = 112) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def card(number: int = 3, **values: object) -> ComponentCard:
    references = tuple(CardReference(f"images/{i}.png", 1.5 - i, jpeg(2 * i), jpeg(2 * i + 1)) for i in range(2))
    given = {"share": {"melanoma": 0.125, "nevus": 0.0004}, "clarity": 0.5, "references": references} | values
    return ComponentCard("layer3.block/1", number, **given)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template `page.html.j2` besides those that come with the tool."""
    environment = rendering.environment()
    shipped = environment.loader
    assert shipped is not None
    monkeypatch.setattr(environment, "loader", jinja2.ChoiceLoader([jinja2.DictLoader({"page.html.j2": PAGE}), shipped]))


def rendered(*cards: ComponentCard, **values: object) -> str:
    context = {"cards": cards, "longest": longest_share(cards)}
    return render_page("page.html.j2", "A title", context, **values)  # type: ignore[arg-type]


def test_card_shows_everything() -> None:
    text = rendered(card(label="ruler marks", label_note="z 9", facts=(("similarity", "0.25"),)))
    assert 'id="component-layer3.block-1-3"' in text
    assert re.search(r"<h2>ruler marks <span[^>]*>Component 3 of layer3.block/1</span></h2>", text)
    assert "similarity <strong>0.25</strong>, clarity <strong>0.50</strong>" in text
    assert "width:100.0%" in text
    assert "12.5\u00a0%" in text
    assert "0.04\u00a0%" in text
    assert "<p>more</p>" in text
    for number in range(4):
        assert base64.b64encode(jpeg(number)).decode() in text
    assert text.count("<img ") == len(re.findall(r'<img class="crop" src="data:image/jpeg;base64,[^"]+" alt="[^"]{9,}">', text)) == 4


def test_card_without_anything_says_so() -> None:
    text = rendered(card(share={}, clarity=None, references=()))
    assert "clarity <strong>not measured</strong>" in text
    assert "Never active on this data" in text
    assert "<img" not in text


def test_classes_beyond_six_are_counted() -> None:
    text = rendered(card(share={f"class {i}": 0.01 * i for i in range(1, 10)}))
    assert text.count("<li>") == 6
    assert text.index("relevance for class 9") < text.index("relevance for class 4")
    assert "relevance for class 3" not in text
    assert "and 3 more classes" in text


def test_nothing_escapes_and_nothing_is_hidden() -> None:
    evil = '"><script>alert(1)</script>\u202e'
    text = rendered(card(label=evil, facts=((evil, evil),)), sources=(Fact(evil, evil),))
    assert "<script" not in text
    assert "\u202e" not in text
    assert "[U+202E]" in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_text_that_looks_like_the_place_of_a_picture_stays_text() -> None:
    unknown = f"picture:{'0' * 64}"
    assert unknown in rendered(card(label=unknown))


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render_page("page.html.j2", "A title", {"cards": (card(),)})


def test_pictures_keep_the_budget_and_each_is_weighed_once() -> None:
    whole = rendered(card(1), card(2))
    small = rendered(card(1), card(2), budget=sum(len(jpeg(i)) for i in range(4)) // 2)
    assert rendered(card(1), card(2), budget=sum(len(jpeg(i)) for i in range(4))) == whole, "the second card's are the same"
    pictures, before = ([base64.b64decode(x) for x in re.findall(r"jpeg;base64,([^\"]+)", text)] for text in (small, whole))
    assert len(pictures) == len(before) == 8
    assert all(len(one) < 0.8 * len(other) for one, other in zip(pictures, before, strict=True))
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (112, 112)


def test_the_same_values_give_the_same_bytes() -> None:
    assert rendered(card()) == rendered(card())


def test_percent() -> None:
    assert [percent(share) for share in (0.0, 0.0004, 0.123, 1.0)] == ["0.0\u00a0%", "0.04\u00a0%", "12.3\u00a0%", "100.0\u00a0%"]


def test_a_page_is_written_or_the_reason_is_said(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "text")
    assert (tmp_path / "page.html").read_text() == "text"
    for path in (tmp_path / "no" / "page.html", tmp_path):
        with pytest.raises(UsageError) as caught:
            write_page(path, "text")
        assert caught.value.slug == "page-not-written"
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"], "nothing half written is left"
