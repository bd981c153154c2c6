"""How long labelling takes, and how often random reference samples are given a label.

    python tests/benchmarks/labels.py time
    python tests/benchmarks/labels.py rate audits/phantom-shortcut.yaml [--vocabulary dermoscopy]

``time``: 10,000 made-up components, 20,000 words, 512 dimensions, 1,000 random sets, in this process with the threads that it is
given. ``rate``: components whose reference samples are random crops of an index, labelled like those of the index; the first number
should be the level, the second at most the level.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from semlens_audit.atlas.embedded_words import embed_words
from semlens_audit.atlas.labelling import chosen_vocabulary
from semlens_audit.atlas.labels import label_components, random_sets
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.word_alignment import WordBlock, label_words
from semlens_audit.scores import unit
from semlens_audit.spec import read_plan
from semlens_audit.statistics import benjamini_hochberg

BLOCK = 2048


def measure_time(components: int = 10_000, words: int = 20_000, dimensions: int = 512) -> None:
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((components, dimensions), dtype=np.float32) + 1.0
    pool = unit(rng.standard_normal((2000, dimensions)) + 1.0).astype(np.float32)
    directions = unit(rng.standard_normal((words, dimensions))).astype(np.float32)
    blocks = [WordBlock(start, directions[start : start + BLOCK]) for start in range(0, words, BLOCK)]
    begun = time.perf_counter()
    label_words(
        concepts, np.full(components, 30), pool, lambda: iter(blocks), words, top=3, sets=random_sets(words),
        generator=np.random.default_rng,
    )
    print(f"{components:,} components x {words:,} words x {dimensions}: {time.perf_counter() - begun:.1f} s")
    left, right = concepts[:4096], np.ascontiguousarray(directions[:BLOCK].T)
    begun = time.perf_counter()
    for _ in range(3):
        left @ right
    speed = 3 * 2 * len(left) * right.size / (time.perf_counter() - begun) / 1e9
    print(f"matrix product alone at {speed:.0f} GFLOP/s: {2e-9 * components * words * dimensions / speed:.1f} s")


def measure_rate(audit: Path, names: list[str], repeats: int) -> None:
    plan = read_plan(audit)
    with Atlas(plan) as atlas:
        words = embed_words(atlas, chosen_vocabulary(plan, names))
        for name, source in atlas.layers.items():
            rng = np.random.default_rng(1)
            pool = np.asarray(source.null_embeddings)
            size, count = source.reference_ids.shape[1], len(source.dead)
            own = label_components(atlas, name, words, top=1)
            labelled = sum(bool(one and one[0].significant) for one in own) / max(sum(map(bool, own)), 1)
            single, families, wrong = [], [], []
            for _ in range(repeats):
                # Halves: sets are drawn from other crops than the components, as those of another draw of the data would be.
                order = rng.permutation(len(pool))
                known, fresh = pool[order[::2]], pool[order[1::2]]
                concepts = np.stack([fresh[rng.integers(len(fresh), size=size)].mean(axis=0) for _ in range(count)])
                centre = known.mean(axis=0).astype(np.float64)
                seed = int(rng.integers(2**31))
                found = label_words(
                    concepts, np.full(count, size), known, lambda c=centre: words.blocks(c), len(words.words), top=1,
                    sets=random_sets(len(words.words)),
                    generator=lambda size, seed=seed: np.random.default_rng([seed, size]),
                )  # fmt: skip
                p = found.p[:, 0]
                rejected = benjamini_hochberg(p) <= 0.05
                single.append((p <= 0.05).mean())
                families.append(rejected.any())
                wrong.append(rejected.mean())
            print(
                f"{plan.audit.audit} {name}, {len(words.words):,} words, {size} reference samples, {repeats} x {count} random components: "
                f"p <= 0.05 in {100 * np.mean(single):.1f} % (s.d. over repeats {100 * np.std(single):.1f}); a label after false-discovery "
                f"control in {100 * np.mean(wrong):.2f} % of components, in {100 * np.mean(families):.0f} % of layers; "
                f"of the network's own components {100 * labelled:.0f} % have one"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "rate"))
    parser.add_argument("audit", nargs="?", type=Path)
    parser.add_argument("--vocabulary", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=40)
    asked = parser.parse_args()
    if asked.what == "time":
        measure_time()
    else:
        measure_rate(asked.audit, asked.vocabulary, asked.repeats)


if __name__ == "__main__":
    main()
