"""Coverage-guided fuzzing of `verify`: ``python -m tests.fuzz.fuzz_verify [-runs=N] [-max_total_time=SECONDS]``.

The seeds are a signed report, an attestation and a record. An input may verify only if it is a seed to the
byte; anything else is refused, without an exception, within a bounded time, and nothing is written or started meanwhile.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["semlens_audit", "pyhanko", "asn1crypto", "pikepdf"]):
    from semlens_audit import signing, verify_pdf
    from semlens_audit.errors import ExitCode
    from semlens_audit.record_file import RESULTS, record_bytes
    from semlens_audit.verify import Request, verify_bytes

from tests.golden.consistent_record import consistent
from tests.unit import hostile
from tests.unit import signing_world as world

signing.render_pdf = verify_pdf.render_pdf = world.render_once  # type: ignore[attr-defined]
RECORD = record_bytes(consistent())
GOOD = {"pdf": world.by_one(), "record": RECORD, "envelope": world.envelope(consistent())}
BESIDE = {"envelope": {RESULTS: RECORD}}
REQUEST = Request(trust=world.trust(), now=world.NOW + timedelta(days=3))


_REMOVED = ("shutil.rmtree (PosixPath('/tmp/weasyprint", "os.rmdir ('/tmp/weasyprint", "os.remove ('")


def look(data: bytes, request: Request = REQUEST) -> ExitCode:
    """What `verify` says of some bytes; the record lies beside an attestation."""
    name = "x.json" if data.lstrip()[:1] == b"{" else "x.pdf"
    return verify_bytes(name, {name: data, RESULTS: RECORD} if b"payloadType" in data else {name: data}, request).exit_code


def attempt(data: bytes) -> None:
    """Verify one input."""
    with hostile.WATCH.watching(seconds=20.0) as touched:
        code = look(data)
    # What is removed are folders of earlier renderings, once nobody refers to them any more.
    assert not [what for kind, what in touched if kind != "read" and not what.startswith(_REMOVED)], touched
    # Reads further: a record that agrees with itself is rendered anew, which takes a temporary folder, and proves no more than that.
    with hostile.WATCH.watching(seconds=60.0) as touched:
        look(data, replace(REQUEST, allow_unsigned=True))
    assert not [what for kind, what in touched if kind == "start"], touched
    assert code != ExitCode.SATISFIED or data in GOOD.values(), "bytes that nobody signed were accepted"


def main() -> None:
    """Fuzz with the arguments of libFuzzer."""
    for name, data in GOOD.items():
        wanted = ExitCode.INTEGRITY if name == "record" else ExitCode.SATISFIED
        assert look(data) == wanted, f"the seed {name} itself gives {look(data)}"
    corpus = Path(tempfile.mkdtemp(prefix="semlens-audit-corpus-"))
    for name, data in GOOD.items():
        (corpus / name).write_bytes(data)
    try:
        atheris.Setup(
            [
                sys.argv[0],
                "-max_len=1000000",
                "-timeout=60",
                "-rss_limit_mb=3000",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                *sys.argv[1:],
                str(corpus),
            ],
            attempt,
        )
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus, ignore_errors=True)


if __name__ == "__main__":
    main()
