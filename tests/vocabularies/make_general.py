"""Makes ``specs/vocabularies/general.txt`` from the files of WordNet 3.0: what can be seen on a picture, the most frequent first.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wn
    python tests/vocabularies/make_general.py wn/usr/share/wordnet > specs/vocabularies/general.txt

Nouns: animals, artefacts, parts of bodies, food, natural objects, plants, substances, shapes; visible phenomena, marks and symbols;
colour, texture and pattern. Adjectives: of colour, light, transparency, texture, shape, size and appearance. Left out: words for
people (a picture does not show what most of them claim, and many are insults), words that WordNet marks as vulgar, disparaging or
slurs, names and Latin names, words whose visible sense is a rare one. Frequency: times that the sense was tagged in the texts behind
WordNet (``cntlist.rev``), then number of senses of the word, since common words have many, then rank of the sense, then
length, short ones first (Zipf's law of abbreviation).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

WORDS = 20_000
VISIBLE = {"05", "06", "08", "13", "17", "20", "25", "27"}
"""Lexicographer files: animal, artifact, body, food, object, plant, shape, substance."""
QUALITIES = ("visual_property", "texture", "clearness", "opacity", "shape", "size", "length", "width", "thickness", "appearance")
"""Kinds of these attributes (file 07), and the adjectives that are their values."""
KINDS = {"10": ("written_symbol", "signal", "marker"), "19": ("atmospheric_phenomenon", "optical_phenomenon")}
"""Kinds of these, by lexicographer file."""
INVISIBLE = (
    "protein", "organic_compound", "molecule", "hormone", "enzyme", "drug", "virus", "acid", "salt", "alkaloid", "antigen", "agent",
    "neural_structure", "nerve", "macromolecule", "chemical_compound", "transuranic_element", "isotope", "body_substance",
)  # fmt: skip
"""Kinds of these substances and parts are left out unless their sense was tagged: a picture does not tell them apart."""
CLUSTERS = (
    "patterned", "haired", "hairy", "hairless", "bright", "dull", "clean", "dirty", "wet", "dry", "rough", "smooth", "rounded", "round",
    "angular", "curved", "straight", "sharp", "transparent", "opaque", "coloured", "colored", "colorless", "chromatic", "achromatic",
    "adorned", "unadorned", "worn", "broken", "frozen", "dark", "light", "striped", "cracked", "wrinkled", "spotted", "furrowed",
    "crooked", "symmetrical",
    "asymmetrical", "regular", "irregular", "pointed", "blurred", "clear", "cloudy", "sunny", "wooden", "metallic", "fat", "thin",
)  # fmt: skip
"""Heads of clusters of adjectives of appearance."""
OWN = (
    "shadow", "blur", "text", "handwriting", "person", "man", "woman", "child", "crowd", "sky", "beach", "forest", "city", "night",
    "sunset", "reflection", "glare", "noise", "black border", "frame", "caption", "logo", "grid", "stripes", "dots", "checkerboard pattern",
    "wood grain", "fur", "feathers", "scales", "grass texture", "background", "indoor scene", "outdoor scene", "close-up", "silhouette",
)  # fmt: skip
"""Places, light, texture and faults of pictures that WordNet keeps elsewhere."""
UNWANTED = re.compile(r"\b(slur|offensive (?:term|name|word)|vulgar|obscene|disparag|derogatory|ethnic|insulting|taboo)", re.IGNORECASE)
COARSE = re.compile(r"\b(slut|whore|fag|shit|gypsy|squaw)")
PLAIN = re.compile(r"[a-z][a-z'-]*( [a-z][a-z'-]*){0,2}")
SYNTAX = re.compile(r"\((a|p|ip)\)$")
RARE = 4
"""Rank of a sense from which it counts as a rare one, unless it was tagged."""
HEADER = """\
# A general vocabulary of what can be seen on pictures: {count:,} English nouns and adjectives of appearance, the most frequent first.
# Made from WordNet 3.0 by tests/vocabularies/make_general.py, which says how they were chosen; words for people are left out.
# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. Licence: WORDNET-LICENSE beside this file.
"""


@dataclass
class Synset:
    """One line of a data file."""

    file: str
    kind: str
    lemmas: list[tuple[str, str]]
    pointers: list[tuple[str, str, str]]
    gloss: str


def read(path: Path) -> dict[str, Synset]:
    out = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):
            continue
        data, _, gloss = line.partition(" | ")
        cells = data.split()
        count = int(cells[3], 16)
        lemmas = [(SYNTAX.sub("", cells[4 + 2 * i]), cells[5 + 2 * i]) for i in range(count)]
        at = 4 + 2 * count
        pointers = [tuple(cells[at + 1 + 4 * i : at + 4 + 4 * i]) for i in range(int(cells[at]))]
        out[cells[0]] = Synset(cells[1], cells[2], lemmas, pointers, gloss)  # type: ignore[arg-type]
    return out


def below(nouns: dict[str, Synset], roots: set[str]) -> set[str]:
    """The synsets and everything that is a kind of them."""
    found, waiting = set(), list(roots)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += [target for symbol, target, kind in nouns[key].pointers if symbol == "~" and kind == "n"]
    return found


def counts(folder: Path) -> tuple[dict[tuple[str, str, str, str], int], dict[tuple[str, str], list[str]]]:
    """Tagged times of a sense by (lemma, kind, file, id), and offsets of a lemma's senses, most frequent first, by (lemma, kind)."""
    times: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for line in (folder / "cntlist.rev").read_text(encoding="ascii").splitlines():
        key, _, number = line.split()
        lemma, rest = key.split("%")
        kind, file, number_of_sense = rest.split(":")[:3]
        times[lemma, kind, file, number_of_sense] += int(number)
    senses = {}
    for name, kind in (("index.noun", "n"), ("index.adj", "a")):
        for line in (folder / name).read_text(encoding="ascii").splitlines():
            if not line.startswith("  "):
                cells = line.split()
                senses[cells[0], kind] = cells[-int(cells[2]) :]
    return times, senses


def adjectives(found: dict[str, Synset], seen: set[str]) -> set[str]:
    """Adjectives that are values of what is seen or derived from it, and those alike to them."""
    direct = {
        key
        for key, one in found.items()
        if any(symbol in ("=", "+") and kind == "n" and target in seen for symbol, target, kind in one.pointers)
        or any(lemma in CLUSTERS for lemma, _ in one.lemmas)
    }
    return direct | {target for key in direct for symbol, target, _ in found[key].pointers if symbol == "&" and found[key].kind == "a"}


def named(nouns: dict[str, Synset], file: str, lemmas: tuple[str, ...]) -> set[str]:
    """Synsets of a file that are the first sense there of one of the lemmas."""
    return {
        key
        for key, one in nouns.items()
        if one.file == file and any(lemma in lemmas and int(sense, 16) == 0 for lemma, sense in one.lemmas)
    }


def choose(folder: Path) -> list[str]:
    nouns, adjective = read(folder / "data.noun"), read(folder / "data.adj")
    times, senses = counts(folder)
    qualities = below(nouns, named(nouns, "07", QUALITIES))
    other = below(nouns, {key for file, lemmas in KINDS.items() for key in named(nouns, file, lemmas)})
    files = {one.file for one in nouns.values()}
    invisible = below(nouns, {key for file in files for key in named(nouns, file, INVISIBLE)})
    insults = {
        lemma.lower()
        for found in (nouns, adjective)
        for one in found.values()
        if UNWANTED.search(one.gloss.split(";")[0])
        or any(symbol.startswith(";u") and _unwanted(nouns, target) for symbol, target, kind in one.pointers if kind == "n")
        for lemma, _ in one.lemmas
    }
    shown = {key for key, one in nouns.items() if one.file in VISIBLE} | qualities | other
    shown = {key for key in shown if nouns[key].file not in ("14", "18") and not any(p[0] == "@i" for p in nouns[key].pointers)}
    values = adjectives(adjective, qualities | {key for key in shown if nouns[key].file == "25"})
    chosen: dict[str, tuple[int, ...]] = {}
    tables = ((nouns, shown, "n", "1"), (adjective, values, "a", ""))
    for found, keys, kind, number in tables:
        for key in keys:
            one = found[key]
            for lemma, sense in one.lemmas:
                word = lemma.replace("_", " ")
                rank = senses[lemma.lower(), kind].index(key)
                tagged = times[lemma.lower(), number or ("5" if one.kind == "s" else "3"), one.file, f"{int(sense, 16):02d}"]
                rare = rank >= RARE - 1 and not tagged
                unseen = found is nouns and key in invisible and not tagged
                coarse = COARSE.search(word) or insults & {lemma.lower(), *word.split()}
                if not PLAIN.fullmatch(word) or coarse or rare or unseen or len(word) < 3:
                    continue
                order = (-tagged, -len(senses[lemma.lower(), kind]), rank, len(word))
                chosen[word] = min(order, chosen.get(word, order))
    chosen |= dict.fromkeys(OWN, ())
    return sorted(chosen, key=lambda word: (chosen[word], word))[:WORDS]


def _unwanted(nouns: dict[str, Synset], key: str) -> bool:
    named_so = ("ethnic_slur", "obscenity", "disparagement", "vulgarism", "derogation", "dirty_word")
    return any(lemma in named_so for lemma, _ in nouns[key].lemmas)


if __name__ == "__main__":
    words = choose(Path(sys.argv[1]))
    sys.stdout.write(HEADER.format(count=len(words)) + "\n".join(words) + "\n")
