"""What a stranger might send: folders laid with traps, values that break readers, and a watch over what reading them touches."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from semlens_audit import spec
from semlens_audit.errors import SpecError

SPEC: dict[str, Any] = {
    "spec": "leaves",
    "version": "1",
    "title": "Scab by the spots",
    "purpose": "testing",
    "classes": {"scab": {"title": "Scab"}},
    "concepts": [
        {"id": "spots", "role": "valid", "descriptions": ["dark spots"], "examples": [{"image": "a.png", "box": [0, 0, 4, 4]}]},
        {
            "id": "label",
            "role": "spurious",
            "roles": {"scab": "spurious"},
            "descriptions": ["a label"],
            "hazard": "wrong leaves",
        },
    ],
    "checks": [
        {
            "id": "no-label",
            "kind": "concept_not_used",
            "class": "scab",
            "concepts": ["label"],
            "layers": ["layer4"],
            "statement": "Labels do not matter.",
            "criterion": {"at_most": 0.25},
            "rationale": "because labels tell nothing",
        }
    ],
}
AUDIT: dict[str, Any] = {
    "audit": "leaves",
    "title": "Leaves",
    "spec": "spec.yaml",
    "subject": {
        "name": "m",
        "model": {"source": "timm", "name": "resnet18", "weights": "weights.safetensors", "arguments": {"num_classes": 2}},
        "preprocessing": {"size": 64, "mean": [0.5, 0.5, 0.5]},
        "classes": ["healthy", "Venturia"],
        "class_map": {"scab": "Venturia"},
    },
    "layers": ["layer4"],
    "data": {"source": "folder", "path": "images", "pattern": "^(?P<class_index>\\d)_"},
    "foundation_model": {"source": "open_clip", "name": "phantom:clip"},
    "examples_root": "examples",
    "measurement": {"bootstrap": 200, "batch_size": 8},
    "store": "store/{audit}.duckdb",
    "reports": "reports",
    "responsible": [{"name": "A", "role": "b"}],
    "limitations": ["small"],
}
HOSTILE: list[Any] = [
    *("", " ", "\n", "\0", "a\x1b[2J", "\u202edcba", "\u200b", "\ud7ff", "\U000e0041", "e" + "\u0301" * 60, "\x85", "\ufeff"),
    *(
        "/etc/passwd",
        "../../../../../../../etc/passwd",
        "~/.ssh/id_rsa",
        "file:///etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
    ),
    *(
        "pipe",
        "link-to-etc",
        "link-to-passwd",
        "loop",
        "inner/../../..",
        "images/..",
        "C:\\Windows",
        "\\\\host\\share",
        "con",
        ".",
    ),
    *(
        "${HOME}",
        "${SEMLENS_AUDIT_X:-/etc}",
        "${SEMLENS_AUDIT_PASSWORD}",
        "${",
        "${SEMLENS_AUDIT_ALLOW_PATHS}",
        "$(id)",
        "`id`",
    ),
    *(
        "phantom:../../x",
        "phantom:clip",
        "phantom:",
        "signs:foundation",
        "hf-hub:a/b",
        "local-dir:/etc",
        "http://127.0.0.1:9/x",
    ),
    *(
        "x" * 5000,
        "../" * 1500,
        "a/" * 3000,
        "{{ 7 * 7 }}",
        "{% include '/etc/passwd' %}",
        "<script>alert(1)</script>",
        "{audit}",
    ),
    *(
        "'; DROP TABLE run_log; --",
        "=cmd|' /C calc'!A0",
        "[link=http://x]y[/link]",
        "%s%n",
        "__class__",
        "code.py:f",
        "spots",
        "scab",
    ),
    *(
        "^(?P<class_index>(a+)+)+$",
        "(?P<class_index>.*.*.*.*)x",
        "(",
        "(?P<class_index>" + "a?" * 80 + ")",
        "(?P<class_index>x{999999999})",
    ),
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**300, -(10**300), 0.0, -0.0, 5e-324, 1e308, float("inf"), float("-inf"), float("nan")),
    *(True, False, None, [], {}, [[]], {"": ""}, {"a": {"b": {"c": []}}}, [None] * 20, ["x"] * 120, [["y"]] * 20),
    *({"__proto__": 1}, {"spec": "spec.yaml"}, {"source": "code", "name": "code.py:f"}, {"checkpoint_path": "/etc/passwd"}),
    *(
        {"source": "open_clip", "name": "."},
        {"source": "timm", "name": "hf-hub:a/b", "weights": "pipe"},
        {"image": "link-to-passwd"},
    ),
]


def lay(folder: Path) -> Path:
    """A folder of an audit with all that it names, and with traps: a pipe, links that lead out, a link to itself."""
    for name in ("images", "examples", "inner", "store"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("images/0_a.png", "images/1_b.png", "examples/a.png"):
        Image.new("RGB", (8, 8), (90, 120, 60)).save(folder / name)
    (folder / "weights.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "code.py").write_text("raise SystemExit('executed')\n", encoding="utf-8")
    os.mkfifo(folder / "pipe")
    for name, target in (("link-to-etc", "/etc"), ("link-to-passwd", "/etc/passwd"), ("loop", "loop"), ("zero", "/dev/zero")):
        (folder / name).symlink_to(target)
    return folder


def read(folder: Path, **changes: object) -> list[str]:
    """Slugs of what is said of the audit in `folder` with parts replaced: ``data__path="x"``."""
    audit = json.loads(json.dumps(AUDIT))
    for name, value in changes.items():
        *outer, last = name.split("__")
        holder = audit
        for key in outer:
            holder = holder[key]
        holder[last] = value
    (folder / "spec.yaml").write_text(json.dumps(SPEC), encoding="utf-8")
    (folder / "audit.yaml").write_text(json.dumps(audit), encoding="utf-8")
    try:
        spec.read_plan(folder / "audit.yaml")
    except SpecError as error:
        return [problem.slug for problem in error.problems]
    return []


def mutate(value: Any, rng: random.Random) -> Any:
    """A copy of `value` with one to four places spoiled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 4)):
        places = list(_places(value))
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind < 0.8 and isinstance(holder, dict):
            del holder[key]
        elif kind < 0.9 and isinstance(holder, dict):
            added = rng.choice(HOSTILE)
            holder[added if isinstance(added, str) else str(added)[:20]] = copy.deepcopy(rng.choice(HOSTILE))
        elif isinstance(holder, list):
            holder.extend(copy.deepcopy([holder[key]] * rng.choice((1, 2, 20))))
        else:
            holder[key] = [holder[key]]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def written(value: Any, rng: random.Random) -> bytes:
    """`value` as YAML: in flow style as JSON is, or in blocks; now and then with bytes spoiled."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.2) if rng.random() < 0.5 else _block(value, 0)
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        at = rng.randrange(len(data) + 1)
        piece = rng.choice(
            (b"", b"\0", b"\xff", b"*a", b"&a ", b"<<: ", b"!!python/object/apply:os.system ", b"\n", b"\t", b"- ", b"---\n")
        )
        data = data[:at] + piece + data[at + rng.choice((0, 1, 5)) :]
    return data


def _block(value: Any, depth: int) -> str:
    """Block style for the outer levels, JSON for what is in them."""
    if isinstance(value, dict) and value and depth < 2:
        return "".join(f"{'  ' * depth}{json.dumps(str(key))}:{_entry(inner, depth)}" for key, inner in value.items())
    if isinstance(value, list) and value and depth < 2:
        return "".join(f"{'  ' * depth}- {json.dumps(inner)}\n" for inner in value)
    return f"{'  ' * depth}{json.dumps(value)}\n"


def _entry(value: Any, depth: int) -> str:
    return "\n" + _block(value, depth + 1) if isinstance(value, dict | list) and value else f" {json.dumps(value)}\n"


class TooLong(BaseException):
    """A reader computes for longer than it may; no reader catches this."""


class Watch:
    """What the process opens, lists, writes or starts while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if isinstance(path, str | bytes):
                self.seen.append(("write" if writing else "read", os.fsdecode(path)))
        elif event in ("os.listdir", "os.scandir"):
            self.seen.append(("read", str(arguments[0])))
        elif event in _HARMLESS:
            return
        elif event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork", "ctypes.dlopen")):
            self.seen.append(("start", f"{event} {arguments[0] if arguments else ''}"[:200]))
        elif event.startswith(("os.", "shutil.", "tempfile.")):
            self.seen.append(("write", f"{event} {arguments[:1]}"))

    @contextmanager
    def watching(self, seconds: float = 1.0) -> Iterator[list[tuple[str, str]]]:
        """Give what is touched; whoever computes for more than `seconds` is stopped by `TooLong`."""

        def stop(*_: object) -> None:
            raise TooLong(f"more than {seconds} s of computing")

        before = signal.signal(signal.SIGPROF, stop)
        self.seen, self.on = [], True
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield self.seen
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.on = False
            signal.signal(signal.SIGPROF, before)


# an event loop makes a socket for itself, connected to nobody
_HARMLESS = frozenset(
    {"os.putenv", "os.unsetenv", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr", "shutil.which", "socket.__new__"}
)
WATCH = Watch()
"""The only one of a process, since such a hook stays for ever."""
