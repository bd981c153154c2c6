"""This project against semanticlens, zennit-crp with open_clip, and the networks alone: ``python -m tests.benchmarks.versus``.

Prints Markdown tables; ``--write`` puts them into the README beside this file, with the growth curves. Runs of the contenders are
interleaved, so that what else the machine does falls on all of them; ratios are of runs that follow each other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks import agreement, peer_world
from tests.benchmarks.contenders import Cost, Here, PeerMissingError, Remote, Started
from tests.benchmarks.peer_world import QUICK, SETTINGS, Setting

__all__ = ["Measured", "Row", "compare", "main", "measure", "table", "write_section"]

README = Path(__file__).with_name("README.md")
NAMES = ("ours-activations", "semanticlens", "ours-crops", "zennit-crp", "floor-fp32", "floor-bf16", "decoding")
PARTS = ("peers", "growth", "warm", "ray")
AT_LEAST = {"activation path": 3.0, "crop + embed": 10.0}
MOST_OVER_FLOOR = 1.5
TIGHT = 0.4
"""Crop threshold at which crops are smaller than the picture, so that boxes can differ."""
HEAD = (
    "| stage | this project, ms | published path, ms | ratio (least–largest) | ratio, processor time | asked for "
    "| networks alone, ms: fp32, bf16 | times that | agreement | peak memory, GB: ours, theirs |"
)


@dataclass
class Measured:
    """All that the contenders of one setting gave.

    Parameters
    ----------
    setting
        Which.
    costs
        Contender -> cost of each turn.
    peaks
        Contender -> peak resident memory, bytes; ``None`` where processes were shared.
    found
        Contender -> what it found.
    missing
        Contender -> why it did not run.
    """

    setting: Setting
    costs: dict[str, list[Cost]]
    peaks: dict[str, int | None]
    found: dict[str, dict[str, np.ndarray]]
    missing: dict[str, str]


@dataclass
class Row:
    """One line of the table; times in seconds for each image or crop, ``None`` where it was not measured.

    Parameters
    ----------
    stage
        What was done.
    ours, theirs
        Median seconds of this project and of the published path.
    ratio, processor
        Median, least and largest of theirs over ours, by wall clock and by processor time.
    floor
        Seconds of the networks alone, in single precision and in bfloat16.
    said
        Agreement in words.
    memory
        Peak bytes, ours and theirs.
    """

    stage: str
    ours: float
    theirs: float | None
    ratio: tuple[float, float, float] | None
    processor: tuple[float, float, float] | None
    floor: tuple[float, float]
    said: str
    memory: tuple[int | None, int | None]

    def _floors(self) -> Iterator[tuple[str, float]]:
        return zip(("fp32", "bf16"), self.floor, strict=True)

    def markdown(self) -> str:
        """The line as Markdown."""
        wanted = AT_LEAST.get(self.stage.partition(",")[0])
        asked = ""
        if wanted is not None:
            short = self.ratio is not None and self.ratio[0] < wanted
            over = [f"{name} {'**falls short**' if self.ours / one > MOST_OVER_FLOOR else 'met'}" for name, one in self._floors()]
            asked = f"≥ {wanted:g}{': **falls short**' if short else ''}; ≤ {MOST_OVER_FLOOR} × the networks alone: {', '.join(over)}"
        cells = [
            self.stage,
            _milliseconds(self.ours),
            _milliseconds(self.theirs),
            _ratio(self.ratio),
            _ratio(self.processor),
            asked,
            ", ".join(map(_milliseconds, self.floor)),
            ", ".join(f"{self.ours / one:.1f}" for one in self.floor),
            self.said,
            ", ".join("–" if size is None else f"{size / 1e9:.2f}" for size in self.memory),
        ]
        return f"| {' | '.join(cells)} |"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def _ratio(found: tuple[float, float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.1f} ({found[1]:.1f}–{found[2]:.1f})"


def compare(setting: Setting, folder: Path, repeats: int, *, start: Callable[[str, Path], Started] = Remote) -> Measured:
    """Run all contenders in turn, `repeats` times."""
    peer_world.write(setting, folder)
    started: dict[str, Started] = {}
    measured = Measured(setting, {}, {}, {}, {})
    for name in NAMES:
        try:
            started[name] = start(name, folder)
            measured.costs[name] = []
        except PeerMissingError as missing:
            measured.missing[name] = str(missing)
    for turn in range(repeats):
        for name, contender in started.items():
            measured.costs[name].append(contender.run(turn))
            print(f"  {setting.name}, turn {turn + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
    for name, contender in started.items():
        measured.peaks[name], measured.found[name] = contender.end()
    return measured


def measure(measured: Measured, folder: Path) -> list[Row]:
    """The lines of a setting's table."""
    setting, _, exact = peer_world.read(folder)
    alone = [measured.costs[name] for name in ("floor-fp32", "floor-bf16")]
    forward, encode = ([float(np.median([cost.each(part) for cost in costs])) for costs in alone] for part in ("forward", "encode"))
    found = measured.found["ours-crops"]
    crops, distinct = int(np.prod(found["boxes"].shape[:2])), int(found["distinct"])
    first = [value * setting.cropped / crops for value in forward]
    second = [value * distinct / crops for value in encode]
    both = [a + b for a, b in zip(first, second, strict=True)]
    boxes, vectors = _crops_agree(measured)
    share = f"{distinct} regions, whole pictures included, embedded for {crops} crops; arithmetic {found['precision']}"
    finding, cropping = ("ours-activations", "semanticlens"), ("ours-crops", "zennit-crp")
    return [
        _row(measured, "activation path, an image", finding, ["activations"], forward, _ids_agree(measured, exact)),
        _row(measured, "crop, a crop", cropping, ["crop"], first, boxes),
        _row(measured, "embed, a crop", cropping, ["embed"], second, "; ".join(filter(None, [vectors, share]))),
        _row(measured, "crop + embed, a crop", cropping, ["crop", "embed"], both, _settling(measured, "ours-crops")),
    ]


def _row(
    measured: Measured, stage: str, names: tuple[str, str], parts: list[str], floor: Sequence[float], said: str
) -> Row:
    every = [[sum(cost.each(part) for part in parts) for cost in measured.costs.get(name, [])] for name in names]
    ours, theirs = every
    whole = set(parts) >= set(measured.costs[names[0]][0].items) - {"settle"}
    processor = [
        [cost.processor / cost.items[parts[0]] for cost in measured.costs.get(name, [])] if whole else [] for name in names
    ]
    return Row(
        stage,
        float(np.median(ours)),
        float(np.median(theirs)) if theirs else None,
        agreement.ratios(theirs, ours) if theirs else None,
        agreement.ratios(processor[1], processor[0]) if processor[1] and processor[0] else None,
        (floor[0], floor[1]),
        said,
        (measured.peaks[names[0]], measured.peaks.get(names[1])),
    )


def _ids_agree(measured: Measured, exact: dict[str, np.ndarray]) -> str:
    """Mean share of reference samples in common, over all components of all layers."""
    keys = [f"ids:{layer}" for layer in measured.setting.layers]

    def mean(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
        return f"{100 * np.concatenate([agreement.overlaps(a[key], b[key]) for key in keys]).mean():.1f} %"

    ours = measured.found["ours-activations"]
    theirs = measured.found.get("semanticlens")
    said = f"the same reference samples as all values sorted in single precision: {mean(exact, ours)}"
    said += "" if theirs is None else f" (semanticlens: {mean(exact, theirs)}); in common: {mean(ours, theirs)}"
    return f"{said}; arithmetic of the layers {ours['precision']}; {_settling(measured, 'ours-activations')}"


def _settling(measured: Measured, name: str) -> str:
    """What choosing the arithmetic cost, which does not grow with the data, and is not among the times."""
    seconds = np.median([cost.seconds["settle"] for cost in measured.costs[name]])
    return f"choosing the arithmetic, once for a store: {seconds:.1f} s"


def _crops_agree(measured: Measured) -> tuple[str, str]:
    """Boxes and embeddings in words: those of the components that the published path was run on."""
    if "zennit-crp" not in measured.found:
        return "", ""
    return crops_agree(measured.found["ours-crops"], measured.found["zennit-crp"], measured.setting.size)


def crops_agree(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], size: int) -> tuple[str, str]:
    """Boxes and concept embeddings in words; `size` is the side of a whole picture."""
    places, once = np.unique(theirs["places"], return_index=True)
    mine, other = ours["boxes"][places].reshape(-1, 4), theirs["boxes"][once].reshape(-1, 4)
    over = agreement.intersection_over_union(mine, other)
    tight = (other[:, 2] - other[:, 0]) < size
    boxes = f"IoU of {len(over)} boxes: median {np.median(over):.3f}, least {over.min():.3f}"
    boxes += f"; {tight.mean():.0%} are not the whole picture".replace("%", " %")
    boxes += f", of these median {np.median(over[tight]):.3f}" if tight.any() else ""
    concept = agreement.cosines(ours["vectors"][places].mean(axis=1), theirs["vectors"][once].mean(axis=1))
    return boxes, f"cosine of {len(concept)} concept embeddings: median {np.median(concept):.4f}, least {concept.min():.4f}"


def by_layer(setting: Setting, made: Path) -> Iterator[str]:
    """Lines of Markdown: boxes and concept embeddings of every layer, cut tightly, against the published path's."""
    from tests.benchmarks.contenders import OurCrops
    from tests.benchmarks.published import ConditionalCrops

    yield f"| layer of {setting.network}, crop threshold {TIGHT:g} | boxes | concept embeddings |"
    yield "| --- | --- | --- |"
    few = replace(setting, components=min(4, setting.components), references=4, cropped=min(16, setting.cropped), threshold=TIGHT)
    for layer in setting.layers:
        folder = made / layer
        peer_world.choose(replace(few, layer=layer, measured=few.components), made, folder)
        ours, theirs = OurCrops(folder), ConditionalCrops(folder)
        for contender in (ours, theirs):
            contender.run(0)
        yield f"| {layer} | {' | '.join(crops_agree(ours.found, theirs.found, setting.size))} |"
        print(f"  {setting.name}, {layer}", file=sys.stderr, flush=True)


def table(setting: Setting, rows: Sequence[Row], missing: dict[str, str]) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"**{setting.title}**; {setting.size} px, crop threshold {setting.threshold:g}"
    yield ""
    yield HEAD
    yield "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | ---: |"
    for row in rows:
        yield row.markdown()
    for name, why in missing.items():
        yield ""
        yield f"Not measured: {name}. {why.splitlines()[0]}"


def write_section(name: str, lines: Sequence[str], document: Path = README) -> None:
    """Replace what stands between the marks ``<!-- name -->`` and ``<!-- end of name -->`` of a document.

    Raises
    ------
    ValueError
        The document does not have the marks.
    """
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{document} has no marks of {name}")
    block = "\n".join(lines).strip("\n")
    document.write_text(pattern.sub(lambda found: f"{found[1]}\n{block}\n\n{found[2]}", text), encoding="utf-8")


def peers(settings: Sequence[Setting], repeats: int, start: Callable[[str, Path], Started]) -> tuple[list[str], list[dict[str, object]]]:
    """Tables of all settings that can be run here, and their rows as plain values."""
    lines: list[str] = []
    plain: list[dict[str, object]] = []
    for setting in settings:
        if setting.real and not (peer_world.test_data() / "models").is_dir():
            lines += [f"{setting.title}: left out, the weights are not on this machine.", ""]
            continue
        with TemporaryDirectory() as folder:
            measured = compare(setting, Path(folder), repeats, start=start)
            rows = measure(measured, Path(folder))
            agreed = [] if "zennit-crp" in measured.missing else list(by_layer(setting, Path(folder)))
        for why in measured.missing.values():
            print(why, file=sys.stderr)
        lines += [*table(setting, rows, measured.missing), "", *agreed, ""]
        plain += [{"setting": setting.name} | asdict(row) for row in rows]
    return lines, plain


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    from tests.benchmarks import growth, scaling, warm
    from tests.benchmarks.bench import machine

    parser = argparse.ArgumentParser(description="This project against its peers and against the networks alone")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts only")
    parser.add_argument("--setting", choices=[one.name for one in SETTINGS], action="append", help="these settings only")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each contender (default: 3)")
    parser.add_argument("--images", type=int, help="pictures that reference samples are found among")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process (default: cores)")
    parser.add_argument("--quick", action="store_true", help="on made-up pictures and tiny networks in this process: whether it runs")
    parser.add_argument("--write", action="store_true", help="put the tables into the README, the curves beside it")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args(arguments)
    if not asked.quick:  # of the processes to be started; this one has its threads
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parts = asked.only or [part for part in PARTS if part != "ray" or not asked.quick]  # a cluster takes as long to start as all the rest
    begun = time.perf_counter()
    found: dict[str, object] = {"machine": machine(), "threads": asked.threads}
    sections: dict[str, list[str]] = {}
    if "peers" in parts:
        chosen = [one for one in SETTINGS if asked.setting is None or one.name in asked.setting]
        chosen = [QUICK] if asked.quick else [replace(one, images=asked.images or one.images) for one in chosen]
        sections["peers"], found["peers"] = peers(chosen, asked.repeats, Here if asked.quick else Remote)
    if "growth" in parts:
        pictures = README.parent if asked.write else None
        sections["growth"], found["growth"] = growth.grow(quick=asked.quick, pictures=pictures)
    if "warm" in parts:
        sections["warm"], found["warm"] = warm.measure(quick=asked.quick)
    if "ray" in parts:
        sections["ray"], found["ray"] = scaling.compare(asked.images or 2000)
    for name, lines in sections.items():
        threads = "1 thread" if name == "ray" else f"{asked.threads} threads"
        on = f"Measured on: {found['machine']}; {threads} a process."
        print("\n".join(["", on, "", *lines]))
        if asked.write:
            write_section(name, [on, "", *lines])
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1, default=float))
    print(f"{time.perf_counter() - begun:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
