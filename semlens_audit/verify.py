"""Verifying what an audit left, with nothing but the file and a list of whom to trust: no network, no store, no trust in this tool.

Every question gets a line: proven, refused, or not checked with the reason. Whatever a parser raises on a stranger's bytes is a
refusal; nothing that could not be read is ever accepted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from semlens_audit.attest import ENVELOPE, SUBJECTS
from semlens_audit.bounded import LimitError, read_bytes
from semlens_audit.errors import AuditError, UsageError
from semlens_audit.pdf_parts import PdfLimits, attached_files, open_pdf
from semlens_audit.pdf_signed import find_signatures
from semlens_audit.record_file import RESULTS
from semlens_audit.records import AuditRecord
from semlens_audit.report import render_html
from semlens_audit.trust import TrustList
from semlens_audit.verification import CheckedLine, Verification, not_checked, proven, refused
from semlens_audit.verify_attestation import attested_subjects, envelope_line, file_lines, statement_line
from semlens_audit.verify_pdf import Moment, attachment_line, rendering_line, revision_line, signature_lines, unsigned_part
from semlens_audit.verify_record import read_strictly, record_lines, waiver_line

__all__ = ["Request", "verify", "verify_bytes"]

Kind = Literal["pdf", "html", "record", "envelope"]
_MOST_BYTES = PdfLimits().file_bytes
_SECONDS = 300
"""Longest that a file may keep its verifier busy, its rendering included."""
_READABLE = "The file can be read within limits"
def _not_proven(lines: Sequence[CheckedLine] = ()) -> tuple[str, ...]:
    """What no line can prove, or no line was asked to."""
    weights = any(line.id == "model" and line.state == "proven" for line in lines)
    return (
        "That the measurements were made as the record says: `reproduce` carries the audit out again.",
        "That the model in use is the audited one"
        + (", but for the weights that were compared." if weights else ": compare its weights with --model."),
        "That the person named holds the certificate or key: that is what being in your trust list means.",
    )


@dataclass(frozen=True)
class Request:
    """What a file is verified against.

    Parameters
    ----------
    trust
        Whose signatures count.
    now
        Present time, with a time zone; default: the clock's.
    today
        Date on which waivers are judged; default: that of `now`.
    revocation_lists
        DER of certificate revocation lists.
    allow_unsigned
        Whether a file without a signature may be looked at for the rest.
    further
        Questions about the record that need more than the file, such as the model's weights.
    """

    trust: TrustList = field(default_factory=TrustList)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    today: date | None = None
    revocation_lists: tuple[bytes, ...] = ()
    allow_unsigned: bool = False
    further: tuple[Callable[[AuditRecord], CheckedLine], ...] = ()


def verify(path: Path, request: Request, *, record: Path | None = None, envelope: Path | None = None) -> Verification:
    """Verify a file.

    Parameters
    ----------
    path
        The PDF of a report, signed or not; its HTML; a record; or an attestation.
    record
        The record of an HTML report or an attestation; default: ``results.json`` beside it.
    envelope
        The attestation of a record, an HTML report or an unsigned PDF; default: ``results.intoto.json`` beside it, if there is one.

    Raises
    ------
    UsageError
        If a file cannot be read at all.
    """
    files = {path.name: _read(path)}
    own = path.name
    for name, given in ((RESULTS, record), (ENVELOPE, envelope)):
        beside = given or path.with_name(name)
        if beside != path and (given is not None or beside.is_file()):
            files[name] = _read(beside)
    for name in SUBJECTS:
        beside = path.with_name(name)
        if name not in files and beside.is_file():
            files[name] = _read(beside)
    try:
        with _within(_SECONDS):
            return verify_bytes(own, files, request)
    except _TooLong:
        why = f"It asks for more than {_SECONDS} seconds."
        line = refused("file", _READABLE, why)
        return Verification(file=own, kind=_kind(files[own]), lines=(line,), not_proven=_not_proven())


class _TooLong(BaseException):
    """Time is up; no handler of ordinary errors may swallow it."""


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Stop what takes longer, where signals can do that: in the main thread of a POSIX system."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, _MOST_BYTES)
    except (OSError, LimitError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError("no-file", f"The file cannot be read: {why}.", "Check the path.", file=str(path)) from error


def verify_bytes(name: str, files: dict[str, bytes], request: Request) -> Verification:
    """Verify ``files[name]``; the others are what lies beside it. Raises nothing: whatever is wrong is a line that is refused."""
    data = files[name]
    kind = _kind(data)
    looks: dict[Kind, Callable[[str, dict[str, bytes], Request], Iterator[CheckedLine]]] = {
        "pdf": _pdf,
        "html": _html,
        "record": _record,
        "envelope": _envelope,
    }
    lines: list[CheckedLine] = []
    question = _READABLE
    if len(data) > _MOST_BYTES:
        lines.append(refused("file", question, f"It is larger than {_MOST_BYTES >> 20} MiB."))
    else:
        try:
            lines.extend(looks[kind](name, files, request))
        except AuditError as error:
            lines.append(refused("file", question, error))
        except Exception as error:  # noqa: BLE001 - a stranger's bytes: whatever a parser raises on them is a refusal
            lines.append(refused("file", question, f"It cannot be read: {type(error).__name__}."))
    good = not any(line.state == "refused" for line in lines)
    follows = tuple(_follows(lines)) if good else ()
    return Verification(file=name, kind=kind, lines=tuple(lines), proven=follows, not_proven=_not_proven(lines))


def _kind(data: bytes) -> Kind:
    if data.startswith(b"%PDF"):
        return "pdf"
    if data.lstrip()[:1] == b"{":
        return "envelope" if b'"payloadType"' in data[-2000:] or b'"payloadType"' in data[:2000] else "record"
    return "html"


def _refused(lines: Sequence[CheckedLine]) -> bool:
    return any(line.state == "refused" for line in lines)


def _pdf(name: str, files: dict[str, bytes], request: Request) -> Iterator[CheckedLine]:
    data = files[name]
    reader = open_pdf(data)
    found = find_signatures(reader, data)
    lines: list[CheckedLine] = []
    if found:
        for line in signature_lines(found, data, request.trust, Moment(request.now, request.revocation_lists)):
            lines.append(line)
            yield line
    carried = {one.name: one.data for one in attached_files(reader)}
    if RESULTS not in carried:
        yield refused("record-form", "The PDF carries a record", f"There is no {RESULTS} in it.")
        return
    record = read_strictly(carried[RESULTS], RESULTS)
    yield proven("record-form", "The PDF carries a record, in the form in which records are written", RESULTS)
    attached = attachment_line(reader, record)
    yield attached
    lines.append(attached)
    unsigned = unsigned_part(found, data)
    if found:
        revision = revision_line(found, data, record)
        lines.append(revision)
        yield revision
    else:
        for line in _attested(name, files, request, record):
            lines.append(line)
            yield line
    for line in _consistent(record, request):
        lines.append(line)
        yield line
    question = "The document is what the record says, rendered again and compared"
    if _refused(lines):
        yield not_checked("rendering", question, "The file is refused already.")
        return
    rendering = rendering_line(record, unsigned)
    if rendering.state == "not_checked" and not any(line.id in ("signature-1", "file-report.pdf") for line in lines):
        rendering = refused("rendering", question, f"{rendering.detail} Nothing else vouches for an unsigned document.")
    yield rendering


def _consistent(record: AuditRecord, request: Request) -> Iterator[CheckedLine]:
    """Whether a record agrees with itself, today too, and with what else is to be compared."""
    lines = list(record_lines(record))
    yield from lines
    if _refused(lines):
        return
    today = waiver_line(record, request.today or request.now.date())
    if today is not None:
        yield today
    for look in request.further:
        yield look(record)


def _attested(name: str, files: dict[str, bytes], request: Request, record: AuditRecord) -> Iterator[CheckedLine]:
    """Whether a file without a signature of its own is attested by the envelope beside it."""
    question = "The file is signed or attested"
    if ENVELOPE not in files:
        if request.allow_unsigned:
            yield not_checked("unsigned", question, "It is neither, and that was allowed: nothing says whom it is from.")
        else:
            yield refused("unsigned", question, f"It is neither: there is no signature in it and no {ENVELOPE} beside it.")
        return
    line, payload = envelope_line(files[ENVELOPE], request.trust, ENVELOPE)
    yield line
    if payload is None:
        return
    subjects = attested_subjects(payload)
    yield statement_line(payload, subjects, record)
    own = name if name in subjects else {".pdf": "report.pdf", ".html": "report.html"}.get(Path(name).suffix, RESULTS)
    yield from file_lines({own: subjects.get(own, "")}, {own: files[name]})


def _record(name: str, files: dict[str, bytes], request: Request) -> Iterator[CheckedLine]:
    record = read_strictly(files[name], name)
    yield proven("record-form", "The record is in the form in which records are written", f"{len(files[name]):,} bytes.")
    yield from _attested(name, files, request, record)
    yield from _consistent(record, request)


def _html(name: str, files: dict[str, bytes], request: Request) -> Iterator[CheckedLine]:
    if RESULTS not in files:
        said = f"An HTML report is verified by its record, and there is no {RESULTS} beside it. Give it with --record."
        yield refused("record-form", "The record of the report is there", said)
        return
    record = read_strictly(files[RESULTS], RESULTS)
    yield proven("record-form", "The record is in the form in which records are written", f"{len(files[RESULTS]):,} bytes.")
    lines = list(_attested(name, files, request, record))
    yield from lines
    yield from _consistent(record, request)
    question = "The document is what the record says, rendered again and compared"
    if render_html(record).encode("utf-8") == files[name]:
        yield proven("rendering", question, f"The same {len(files[name]):,} bytes.")
    elif any(line.id.startswith("file-") and line.state == "proven" for line in lines):
        yield not_checked("rendering", question, "This version renders it otherwise; the attestation says that it is the one filed.")
    else:
        yield refused("rendering", question, "The document is not what this version renders from the record.")


def _envelope(name: str, files: dict[str, bytes], request: Request) -> Iterator[CheckedLine]:
    line, payload = envelope_line(files[name], request.trust, name)
    yield line
    if payload is None:
        return
    subjects = attested_subjects(payload)
    yield from file_lines(subjects, files)
    if RESULTS not in files:
        return
    record = read_strictly(files[RESULTS], RESULTS)
    yield statement_line(payload, subjects, record)
    yield from _consistent(record, request)


def _follows(lines: Sequence[CheckedLine]) -> Iterator[str]:
    """What follows from lines of which none is refused, in sentences."""
    held = {line.id for line in lines if line.state == "proven"}
    if "signature-1" in held:
        yield "Those named signed this very file, and nothing was changed or added after they did."
    if "envelope" in held:
        yield "Someone in the trust list attested these results."
    if "record-findings" in held and "record-verdict" in held:
        yield "Every finding, the verdict and the decision on the release follow from the measurements that the record states."
    if "rendering" in held:
        yield "The document shows what the record says, and nothing else."
