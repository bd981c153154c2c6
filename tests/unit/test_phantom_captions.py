from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.phantom import captions
from semlens_audit.phantom.crops import draw_attributes
from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, Attributes, Lesion, Scene, render


def scenes(count: int, start: int = 500) -> Iterator[tuple[Attributes, Scene, np.random.Generator]]:
    for seed in range(start, start + count):
        rng = Lesion(seed).stream("test")
        attributes = draw_attributes(rng)
        yield attributes, render(seed, attributes), rng


def test_captions_name_only_what_is_visible() -> None:
    """Whatever a caption claims is in the crop, by the masks."""
    for attributes, scene, rng in scenes(60):
        for _ in range(4):
            box = captions.draw_box(scene, rng)
            left, top, right, bottom = box
            state = captions.facts(scene, attributes, box)
            _, claimed = captions.caption(state, rng)
            for name in claimed:
                assert state[captions.FACTS.index(name)] == captions.TRUE
                if name in ATTRIBUTES:
                    assert attributes.has(name)
                    inside = scene.masks[name][top:bottom, left:right].sum()
                    assert inside / ((bottom - top) * (right - left)) > 0.01
                elif name in captions.OPPOSITE:
                    assert not attributes.has(captions.OPPOSITE[name])
                    assert scene.lesion[top:bottom, left:right].sum() >= 0.75 * scene.lesion.sum()
                elif name == "mole":
                    assert scene.lesion[top:bottom, left:right].any()
                else:
                    assert name == "plain_skin"
                    assert not scene.lesion[top:bottom, left:right].any()


def test_caption_text_holds_a_phrase_of_each_claim() -> None:
    """The claims a caption is filed under are in its words, and it has words for nothing else."""
    rng = np.random.default_rng(4)
    words = {
        name: {*captions.PHRASES[name], *captions.ADJECTIVES.get(name, ()), *captions.WITH.get(name, ())}
        for name in captions.FACTS
    }
    own = {name: words[name] for name in ARTEFACTS}
    for attributes, scene, _ in scenes(120, 900):
        state = captions.facts(scene, attributes, (0, 0, 128, 128))
        text, claimed = captions.caption(state, rng)
        for name in claimed:
            if name != "mole":
                assert any(phrase in text for phrase in words[name]), (text, name)
        if len(claimed) == 1 and claimed[0] in ARTEFACTS:
            longest = max((phrase for phrase in own[claimed[0]] if phrase in text), key=len)
            rest = text.replace(longest, "")
            assert rest in {template.format("") for template in captions.TEMPLATES}


def test_facts_of_whole_images_are_the_attributes() -> None:
    """Nothing absent is ever true, and what is present is nearly always true on the whole image."""
    seen = np.zeros((len(ATTRIBUTES), 2))
    for attributes, scene, _ in scenes(150):
        state = captions.facts(scene, attributes, (0, 0, 128, 128))
        for place, name in enumerate(ATTRIBUTES):
            if attributes.has(name):
                seen[place] += (state[place] == captions.TRUE, 1)
            else:
                assert state[place] == captions.FALSE
    assert (seen[:, 1] > 10).all()
    assert (seen[:, 0] / seen[:, 1] > 0.8).all()


def test_a_crop_without_the_artefact_does_not_show_it() -> None:
    scene = render(3, Attributes.of("ruler"))
    rows, columns = np.nonzero(scene.masks["ruler"])
    left = 0 if columns.min() > 40 else 88
    top = 0 if rows.min() > 40 else 88
    box = (left, top, left + 40, top + 40)
    if scene.masks["ruler"][top : top + 40, left : left + 40].any():
        pytest.fail("the corner was meant to be away from the ruler")
    assert captions.facts(scene, Attributes.of("ruler"), box)[captions.FACTS.index("ruler")] == captions.FALSE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_boxes_are_square_and_inside(seed: int, draw: int) -> None:
    rng = np.random.default_rng(draw)
    scene = render(seed % 40, draw_attributes(rng))
    left, top, right, bottom = captions.draw_box(scene, rng)
    assert 0 <= left < right <= 128
    assert 0 <= top < bottom <= 128
    assert right - left == bottom - top >= 28


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_truth_is_a_conjunction(data: st.DataObject) -> None:
    """Slow loop: a caption is false with one false claim, else open with one open claim, else true."""
    count = len(captions.FACTS)
    rows = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=count, max_size=count), min_size=1, max_size=4))
    claims = data.draw(st.lists(st.sets(st.sampled_from(captions.FACTS), max_size=4).map(sorted), min_size=1, max_size=4))
    table = captions.truth(np.array(rows, dtype=np.int8), claims)
    for i, row in enumerate(rows):
        for j, names in enumerate(claims):
            values = [row[captions.FACTS.index(name)] for name in names]
            expected = captions.OPEN if captions.OPEN in values else captions.TRUE
            expected = captions.FALSE if captions.FALSE in values else expected
            assert table[i, j] == expected


def test_phrases_are_unambiguous() -> None:
    """No phrase stands for two facts, and the probes' templates are among those trained on."""
    from semlens_audit.phantom.evaluate_clip import PROBE_TEMPLATES

    every = [phrase for phrases in captions.PHRASES.values() for phrase in phrases]
    assert len(every) == len(set(every))
    assert set(PROBE_TEMPLATES) <= set(captions.TEMPLATES)
    assert set(captions.PHRASES) == set(captions.FACTS)
