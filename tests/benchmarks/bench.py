"""What each stage of an audit costs on this machine, as a Markdown table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ("audits/phantom-clean.yaml", "audits/ham10000.yaml")


@dataclass
class Row:
    """One line of the table; memory in bytes."""

    name: str
    items: int | None
    seconds: float
    memory: int

    def markdown(self) -> str:
        """The line as Markdown."""
        items = "" if self.items is None else f"{self.items:,}"
        rate = "" if not self.items or self.seconds < 0.005 else f"{self.items / self.seconds:,.0f}"
        return f"| {self.name} | {items} | {self.seconds:.1f} | {rate} | {self.memory / 1e9:.2f} |"


class Memory:
    """Largest resident set size since `reset`, sampled in a thread; the process `pid` and its children."""

    def __init__(self, pid: int | None = None) -> None:
        self._process = psutil.Process(pid)
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.peak = max(self.peak, self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    def reset(self) -> None:
        self.peak = self._process.memory_info().rss

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass
class StageClock:
    """A progress that keeps what each stage cost."""

    memory: Memory
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """See `semlens_audit.progress.Progress`."""
        print(f"  {name} ({total})", file=sys.stderr, flush=True)
        finished = 0

        def advance(items: int) -> None:
            nonlocal finished
            finished += items

        self.memory.reset()
        begun = time.perf_counter()
        yield advance
        self.rows.append(Row(name, finished, time.perf_counter() - begun, self.memory.peak))


def build(audit: Path) -> None:
    """Run `audit` in this process and print one JSON list of rows: the child's half of `measure`."""
    begun = time.perf_counter()
    memory = Memory()
    clock = StageClock(memory)

    from semlens_audit import engine, paths
    from semlens_audit.spec import read_plan

    plan = read_plan(audit)
    record = engine.run(plan, progress=clock, command="bench")
    engine.write_record(record, paths.reports_path(plan) / "results.json")
    rest = time.perf_counter() - begun - sum(row.seconds for row in clock.rows)
    clock.rows.append(Row("everything else (imports, loading, queries)", None, rest, memory.peak))
    memory.stop()
    print(json.dumps([vars(row) for row in clock.rows]))


def timed(name: str, *arguments: str) -> Row:
    """Run the command line with `arguments` in a fresh process."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "semlens_audit", *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
    memory = Memory(process.pid)
    code = process.wait()
    seconds = time.perf_counter() - begun
    memory.stop()
    if code not in (0, 1, 3, 4):
        raise SystemExit(f"{' '.join(arguments)}: exit code {code}")
    return Row(name, None, seconds, memory.peak)


def lay(audit: Path, folder: Path) -> tuple[Path, Path]:
    """Copy `audit` and its spec into `folder` with absolute paths, store and reports inside `folder`."""
    from semlens_audit.spec import read_plan
    from semlens_audit.yaml_source import load

    plan = read_plan(audit)
    spec = load(Path(plan.spec_file)).data
    text = load(audit).data
    (folder / "spec.yaml").write_text(json.dumps(spec))
    text |= {"spec": "spec.yaml", "store": "store.duckdb", "reports": "reports"}

    def absolute(value: str) -> str:
        return value if value.startswith(("phantom:", "${")) else str((audit.parent / value).resolve())

    model, data, foundation = text["subject"]["model"], text["data"], text["foundation_model"]
    for owner, key in (
        (model, "weights"),
        (data, "path"),
        (data, "labels"),
        (data, "attributes"),
        (foundation, "weights"),
        (text, "examples_root"),
        (text["subject"], "classes"),
    ):
        if isinstance(owner.get(key), str):
            owner[key] = absolute(owner[key])
    target = folder / "audit.yaml"
    target.write_text(json.dumps(text))
    return target, folder / "spec.yaml"


def change_criterion(spec: Path) -> None:
    """Move the first criterion by a hair, as an expert would who thinks again."""
    text = json.loads(spec.read_text())
    bound = text["checks"][0]["criterion"]
    bound |= {key: round(value * 0.999, 6) for key, value in bound.items()}
    spec.write_text(json.dumps(text))


def measure(audit: Path) -> list[Row]:
    """Cost of every stage of `audit`, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy, spec = lay(audit, Path(folder))
        child = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench", "--build", str(copy)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if child.returncode:
            raise SystemExit(f"{audit}: the run failed with exit code {child.returncode}")
        rows = [Row(**row) for row in json.loads(child.stdout.splitlines()[-1])]
        store = Path(folder) / "store.duckdb"
        rows.append(
            Row(
                f"**all of it** (store {store.stat().st_size / 1e6:.0f} MB)",
                None,
                sum(row.seconds for row in rows),
                max(row.memory for row in rows),
            )
        )
        rows.append(timed("the same again, nothing changed, with HTML", "run", str(copy), "--quiet"))
        change_criterion(spec)
        rows.append(timed("a changed criterion, with HTML", "run", str(copy), "--quiet"))
        results = str(Path(folder) / "reports" / "results.json")
        rows.append(timed("report as HTML", "report", results, "--no-pdf"))
        rows.append(timed("report as HTML and PDF", "report", results))
        return rows


def machine() -> str:
    """Processor, cores and versions in one line."""
    from importlib.metadata import version

    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in names.splitlines() if line.startswith("model name")), platform.machine()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "duckdb", "weasyprint"))
    return (
        f"{model}, {cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB; Python {platform.python_version()}, {packages}"
    )


def main() -> None:
    """Print a table for each audit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audits", nargs="*", type=Path, help="audit files; default: the phantom's clean twin and HAM10000")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    data = Path(os.environ.setdefault("SEMLENS_AUDIT_TESTDATA", str((ROOT / "../shared/data").resolve())))
    # the audits measured are copies elsewhere, which name files of the checkout
    os.environ.setdefault("SEMLENS_AUDIT_ALLOW_PATHS", str(ROOT))
    print(f"Measured on: {machine()}\n")
    for audit in arguments.audits or [ROOT / name for name in DEFAULT]:
        if audit.name == "ham10000.yaml" and not data.is_dir():
            print(f"{audit.name}: left out, its data are not on this machine ({data})\n")
            continue
        rows = measure(audit.resolve())
        print(
            f"**{audit.stem}**\n\n| stage | items | seconds | items/s | peak memory, GB |\n| --- | ---: | ---: | ---: | ---: |"
        )
        print("\n".join(row.markdown() for row in rows), flush=True)
        print()


if __name__ == "__main__":
    main()
