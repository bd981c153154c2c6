"""Deletion and insertion curves as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from semlens_audit.figures import PAPER
from tests.benchmarks.attribution import BASE, METHODS, Found, alike

__all__ = ["draw"]

DRAWN = [name for name in METHODS if name != "deviation × gradient"]
"""That one is for components at their mean, which are not drawn."""
COLOURS = dict(zip(DRAWN, (PAPER.spurious, PAPER.valid, PAPER.neutral, PAPER.inconclusive, PAPER.satisfied, PAPER.soft), strict=True))
DASHES = dict(zip(DRAWN, ("-", "-", (0, (4, 1.5)), (0, (1.5, 1)), "-", (0, (5, 2, 1, 2))), strict=True))
SHORT = {"activation × gradient": "a × g", "integrated gradients": "IG"}
TICKS = (0, 0.02, 0.1, 0.25, 0.5, 1)


def relative(found: Found, name: str, way: int) -> np.ndarray:
    """(S,) the mean over images, 0 with the whole layer at zero and 1 with nothing off."""
    ends = found.logit["zero", "image"][BASE][:, 0].mean(axis=0)
    return (found.logit["zero", "image"][name][:, way].mean(axis=0) - ends[-1]) / (ends[0] - ends[-1])


def draw(every: Sequence[Found]) -> str:
    """SVG: a column for each model, for each of its layers deletion above insertion; components at zero, an order for each image."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "attribution", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": PAPER.line, "xtick.color": PAPER.soft, "ytick.color": PAPER.soft,
        "text.color": PAPER.ink, "axes.labelcolor": PAPER.ink,
    })  # fmt: skip
    from matplotlib import pyplot

    models = list(dict.fromkeys(found.model for found in every))
    columns = [[found for found in every if found.model == model] for model in models]
    depth = max(map(len, columns))
    figure, panels = pyplot.subplots(2 * depth, len(models), figsize=(3.5 * len(models), 4.6 * depth), squeeze=False)
    for column, layers in enumerate(columns):
        for row, found in enumerate(layers):
            for way, said in enumerate(("deletion", "insertion")):
                panel = panels[2 * row + way, column]
                _panel(panel, found, way)
                panel.set_title(f"{found.model} {found.layer}, {said}", fontsize=9.5, loc="left")
        panels[-1, column].set_xlabel("components switched, per cent (root scale)", x=0.3)
    for row in range(2 * depth):
        panels[row, 0].set_ylabel("logit: 1 nothing off, 0 all off", fontsize=8)
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Title": "Deletion and insertion curves of attributions of components"})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _panel(panel: Any, found: Found, way: int) -> None:
    shares = np.sqrt(found.steps / found.steps[-1])
    groups = [kept for group in alike(found, "image") if (kept := [name for name in group if name in DRAWN])]
    lines = {group[BASE in group and group.index(BASE)]: relative(found, group[0], way) for group in groups}
    words = {
        leader: ", ".join(SHORT.get(name, name) for name in group) for leader, group in zip(lines, groups, strict=True)
    }
    for name, line in lines.items():
        panel.plot(shares, line, color=COLOURS[name], linestyle=DASHES[name], linewidth=1.5)
    panel.hlines([0, 1], 0, 1, color=PAPER.line, linewidth=0.6, zorder=0)
    panel.set_xticks(np.sqrt(TICKS), [f"{100 * tick:g}" for tick in TICKS], fontsize=8)
    low, high = min(0.0, *(line.min() for line in lines.values())), max(1.0, *(line.max() for line in lines.values()))
    room = 0.06 * (high - low)
    panel.set_ylim(low - room, high + room)
    panel.set_xlim(0, 1.62)
    panel.spines["bottom"].set_bounds(0, 1)
    _labels(panel, shares, lines, words, 0.085 * (high - low + 2 * room))


def _labels(panel: Any, shares: np.ndarray, lines: dict[str, np.ndarray], words: dict[str, str], least: float) -> None:
    """Names at the right, one above the other as the curves are at half of the components, each with a line to its curve there."""
    half = int(np.argmin(np.abs(shares - np.sqrt(0.5))))
    ordered = sorted(lines, key=lambda name: lines[name][half])
    places = [float(lines[name][half]) for name in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    over = places[-1] - panel.get_ylim()[1] + least / 2
    if over > 0:
        places[-1] -= over
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - least)
    for name, place in zip(ordered, places, strict=True):
        start = float(lines[name][half])
        panel.plot([shares[half], 1.03], [start, place], color=COLOURS[name], linewidth=0.5, alpha=0.7)
        panel.plot([shares[half]], [start], marker="o", markersize=3, color=COLOURS[name])
        panel.text(1.04, place, words[name], color=COLOURS[name], va="center", fontsize=8)
