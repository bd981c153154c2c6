"""Ten thousand generated specs and audits: complaints and nothing else, within a second each, touching nothing beyond their folder."""

from __future__ import annotations

import pickle
import random
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semlens_audit import paths, spec, yaml_source
from semlens_audit.errors import SpecError
from tests.unit import hostile

ROOT = Path(__file__).resolve().parents[2]
OWN = (str(ROOT / "semlens_audit"), str(ROOT / "specs"), str(ROOT / "templates"), sys.prefix, sys.base_prefix)
STDLIB = sysconfig.get_paths()["stdlib"]
EXAMPLES = 2500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inside a folder of its own, so that one level up is outside."""
    return hostile.lay(tmp_path_factory.mktemp("stranger") / "audits")


def check_touched(touched: Sequence[tuple[str, str]], folder: Path) -> None:
    """Nothing was written, nothing started but the trial of a pattern, and nothing read but the folder and the tool itself."""
    for kind, what in touched:
        if kind == "start":
            assert what.startswith(("subprocess.Popen", "os.posix_spawn", "os.fork")), what
            assert sys.executable in what or "fork" in what, what
        else:
            assert kind == "read", f"{kind} {what}"
            assert what.startswith((str(folder.parent), STDLIB, *OWN)), what


def attempt(folder: Path, spec_file: bytes, audit_file: bytes) -> None:
    (folder / "spec.yaml").write_bytes(spec_file)
    (folder / "audit.yaml").write_bytes(audit_file)
    plan = None
    with hostile.WATCH.watching() as touched:
        try:
            plan = spec.read_plan(folder / "audit.yaml")
        except SpecError as error:
            problems = error.problems
    check_touched(touched, folder)
    if plan is None:
        assert problems
        assert len(problems) <= 203
        for problem in problems:
            assert problem.message
            assert problem.file
            assert len(problem.message) < 20_000
        return
    for path in (paths.store_path(plan), paths.reports_path(plan)):
        assert path.resolve().is_relative_to(folder.parent.resolve())


@contextmanager
def parsed_once(unspoilt: bytes) -> Iterator[None]:
    """Within, these bytes are parsed once for each name of a file and then copied: they tell nothing more the next time."""
    parse, kept = yaml_source.parse, dict[str, bytes]()

    def remembering(content: bytes, file: str) -> yaml_source.Source:
        if content != unspoilt:
            return parse(content, file)
        if file not in kept:
            kept[file] = pickle.dumps(parse(content, file))
        return pickle.loads(kept[file])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_source, "parse", remembering)
        yield
    assert kept, "the unspoilt file was never read"


def sweep(make: st.SearchStrategy[tuple[bytes, bytes]], folder: Path) -> None:
    tried = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(make)
    def each(files: tuple[bytes, bytes]) -> None:
        nonlocal tried
        tried += 1
        attempt(folder, *files)

    each()
    assert tried >= EXAMPLES


SEEDS = st.integers(0, 2**40).map(random.Random)
GOOD_SPEC = hostile.written(hostile.SPEC, random.Random(3))
GOOD_AUDIT = hostile.written(hostile.AUDIT, random.Random(3))


def test_the_unspoilt_pair_is_a_plan(folder: Path) -> None:
    (folder / "spec.yaml").write_bytes(hostile._block(hostile.SPEC, 0).encode())
    (folder / "audit.yaml").write_bytes(hostile._block(hostile.AUDIT, 0).encode())
    plan = spec.read_plan(folder / "audit.yaml")
    assert paths.store_path(plan) == folder / "store" / "leaves.duckdb"


@pytest.mark.slow
def test_spoilt_specs(folder: Path) -> None:
    good = hostile._block(hostile.AUDIT, 0).encode()
    with parsed_once(good):
        sweep(SEEDS.map(lambda rng: (hostile.written(hostile.mutate(hostile.SPEC, rng), rng), good)), folder)


@pytest.mark.slow
def test_spoilt_audits(folder: Path) -> None:
    good = hostile._block(hostile.SPEC, 0).encode()
    with parsed_once(good):
        sweep(SEEDS.map(lambda rng: (good, hostile.written(hostile.mutate(hostile.AUDIT, rng), rng))), folder)


@pytest.mark.slow
def test_spoilt_pairs(folder: Path) -> None:
    def make(rng: random.Random) -> tuple[bytes, bytes]:
        return tuple(hostile.written(hostile.mutate(value, rng), rng) for value in (hostile.SPEC, hostile.AUDIT))  # type: ignore[return-value]

    sweep(SEEDS.map(make), folder)


@pytest.mark.slow
def test_bytes_and_text_of_any_kind(folder: Path) -> None:
    signs = st.text(st.sampled_from("ab:-?{}[],&*#|>'\"%@!~ \n\t0.\\\u202e"), max_size=80)
    anything = (
        st.binary(max_size=80) | signs.map(str.encode) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
    )
    sweep(st.tuples(anything, anything), folder)
