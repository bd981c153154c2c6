"""Coverage-guided fuzzing of what reads specs and audits: ``python -m tests.fuzz.fuzz_spec [-runs=N] [-max_total_time=SECONDS]``.

An input is an audit, a line with ``=====``, and its spec; without that line it is a spec and the audit is a good one. Whatever the
bytes, the reader gives problems or a plan, writes nothing, starts nothing but the trial of a pattern, and reads only its own folder.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["semlens_audit", "ruamel"]):
    from semlens_audit import paths, spec
    from semlens_audit.errors import SpecError

from tests.unit import hostile

MARK = b"\n=====\n"
DATA = Path(__file__).resolve().parents[1] / "data"
OWN = Path(__file__).resolve().parents[2]
FOLDER = hostile.lay(Path(tempfile.mkdtemp(prefix="semlens-audit-fuzz-")) / "audits")
GOOD = hostile.written(hostile.AUDIT, random.Random(3))


def seeds(folder: Path) -> None:
    """The good and the bad files of the tests, and spoilt pairs, as a corpus."""
    for number, path in enumerate(sorted(DATA.glob("*/*.yaml"))):
        content = path.read_bytes()
        both = content + MARK + hostile.written(hostile.SPEC, random.Random(3)) if path.name.startswith("audit") else content
        (folder / f"file-{number}").write_bytes(both)
    for number in range(60):
        rng = random.Random(number)
        pair = (hostile.written(hostile.mutate(value, rng), rng) for value in (hostile.AUDIT, hostile.SPEC))
        (folder / f"pair-{number}").write_bytes(MARK.join(pair))


def attempt(data: bytes) -> None:
    """Read one input."""
    audit_file, mark, spec_file = data.partition(MARK)
    if not mark:
        audit_file, spec_file = GOOD, data
    (FOLDER / "spec.yaml").write_bytes(spec_file)
    (FOLDER / "audit.yaml").write_bytes(audit_file)
    plan, problems = None, ()
    with hostile.WATCH.watching(seconds=2.0) as touched:
        try:
            plan = spec.read_plan(FOLDER / "audit.yaml")
        except SpecError as error:
            problems = error.problems
    for kind, what in touched:
        here = what.startswith((str(FOLDER.parent), str(OWN), sys.prefix, sys.base_prefix))
        assert kind == "start" or (kind == "read" and here), f"{kind} {what}"
    if plan is None:
        assert problems
        assert all(str(problem) for problem in problems)
    else:
        for path in (paths.store_path(plan), paths.reports_path(plan)):
            assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(FOLDER.parent)), path


def main() -> None:
    """Fuzz with the arguments of libFuzzer."""
    corpus = Path(tempfile.mkdtemp(prefix="semlens-audit-corpus-"))
    seeds(corpus)
    try:
        atheris.Setup(
            [
                sys.argv[0],
                "-max_len=8192",
                "-timeout=20",
                "-rss_limit_mb=2048",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                *sys.argv[1:],
                str(corpus),
            ],
            attempt,
        )
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus, ignore_errors=True)
        shutil.rmtree(FOLDER.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
