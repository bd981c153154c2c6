"""Labels of components on photographs as they were found, for `tests.benchmarks.naming`.

Nothing can be switched on and off in a photograph, and the foundation model at hand cannot read. A word is therefore the name of a group of
ImageNet's classes, given by a few photographs of some of them; "with" and "without" are photographs of other classes, of the group and not.
Photographs that reference samples are found among, that words are given by, and that labels are tested on are three different sets. This
observes what goes with a word; it does not show that the thing itself drives the component.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semlens_audit import index
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import Vocabulary, WordExample, fold
from semlens_audit.execution import Execution
from semlens_audit.images import read_image
from semlens_audit.progress import LineProgress
from semlens_audit.spec import read_plan
from semlens_audit.subject import make_view
from semlens_audit.work import Bench
from tests.benchmarks import naming, naming_scores

__all__ = ["GROUPS", "members", "photographs", "split"]

GROUPS: dict[str, str] = {
    "fish": "0-6 389-397",
    "bird": "7-24 80-100 127-146",
    "reptile": "33-68",
    "insect": "300-326",
    "dog": "151-268",
    "cat": "281-293",
    "wolf or fox": "269-280",
    "hoofed animal": "339-355",
    "ape or monkey": "365-382",
    "fruit or vegetable": "936-946 948-957",
    "dish": "924-935 959-965",
    "landscape": "970 972-980",
    "building": "425 437 442 449 483 497 498 538 580 663 668 698 727 832 873 900",
    "furniture": "423 453 493 495 516 520 526 532 553 559 564 703 765 831 857 894",
    "boat": "403 472 484 510 554 576 625 628 780 814 871 914",
    "motor vehicle": "407 436 468 511 555 569 573 575 609 627 654 656 661 665 670 675 717 734 751 757 779 803 817 847 864 866 867 874",
    "musical instrument": "401 402 420 432 486 513 541 546 558 566 577 579 593 594 642 683 684 687 699 776 822 875 881 889",
    "clothing": "399 400 411 445 459 474 501 568 578 601 608 610 614 617 638 639 652 655 689 697 735 775 834 841 842 869 887",
}
"""Word -> positions of classes in ImageNet's order, chosen by the names of the classes before any label was seen."""

LAYER = "features.18"
INDEXED, TESTED, SHOWN = (0, 3), (1, 4), (2,)
"""Of every five classes of a group, and of those of none, by their order: what the index, the tests and the words are made of."""


def members(said: str) -> list[int]:
    """Positions of classes: ``"0-2 5"`` is 0, 1, 2 and 5."""
    spans = [part.split("-") for part in said.split()]
    return [place for span in spans for place in range(int(span[0]), int(span[-1]) + 1)]


def split(classes: int = 1000) -> dict[tuple[int, ...], list[int]]:
    """Positions of the classes of each part, ascending."""
    grouped = [members(said) for said in GROUPS.values()]
    rest = sorted(set(range(classes)) - {place for group in grouped for place in group})
    return {
        part: sorted(group[at] for group in (*grouped, rest) for at in range(len(group)) if at % 5 in part)
        for part in (INDEXED, TESTED, SHOWN)
    }


def shows(places: Sequence[int]) -> np.ndarray:
    """(N, A) bool: which groups classes belong to."""
    return np.array([[place in group for group in map(members, GROUPS.values())] for place in places])


def photographs(data: Path, folder: Path) -> list[naming.Cell]:
    """The last layer of the MobileNetV2 of ``audits/photographs.yaml``."""
    files = {int(file.name.split("_")[0]): file for file in sorted((data / "imagenet_samples").glob("*.jpg"))}
    parts = split()
    indexed = folder / "photographs"
    indexed.mkdir(exist_ok=True)
    for place in parts[INDEXED]:
        if not (indexed / files[place].name).exists():
            shutil.copyfile(files[place], indexed / files[place].name)
    plan = naming.contrastive(read_plan(naming.ROOT / "audits" / "photographs.yaml"), (LAYER,), folder / "photographs.duckdb")
    source = plan.audit.data.model_copy(update={"path": str(indexed)})
    plan = plan.model_copy(update={"audit": plan.audit.model_copy(update={"data": source})})
    where = Execution(device="cpu")
    index.build(plan, progress=LineProgress(sys.stderr), execution=where)
    order = list(GROUPS)
    shown = set(parts[SHOWN])
    examples = {
        word: tuple(WordExample(files[place], None) for place in members(said) if place in shown) for word, said in GROUPS.items()
    }
    vocabulary = Vocabulary("groups of classes", tuple(sorted(order, key=fold)), examples)
    with Atlas(plan) as atlas:
        bench = Bench(plan, atlas.data, execution=where)
        has = shows([int(one.path.split("_")[0]) for one in atlas.data.samples])
    seen = naming.activations(bench, (LAYER,), (bench.views[one.id] for one in bench.data.samples))[LAYER]
    view = plan.audit.subject.preprocessing
    tested = naming.activations(bench, (LAYER,), (np.asarray(make_view(read_image(files[place]), view)) for place in parts[TESTED]))[LAYER]
    words = [(place, True) for place in range(len(order))]
    held = shows(parts[TESTED]).T
    area = naming.of_index(tested, held.T)
    difference = np.stack([naming_scores.differences(tested[~column], tested[column]) for column in held], axis=1)
    known = naming.of_index(seen, has)
    found = naming.names(plan, LAYER, vocabulary, order, seen, known.argmax(axis=1))
    title = f"photographs, `{LAYER}`, {len(order)} words, {len(seen)} photographs indexed, {len(tested)} tested"
    return [naming.Cell(title, found, (), naming_scores.signed(area, difference, words), None)]
