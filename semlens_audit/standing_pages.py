"""How often the instrument is wrong, as a report says it: on page one in a sentence, and in a section of its own."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.pages import Fact, Table
from semlens_audit.records import AuditRecord, StandingRecord
from semlens_audit.standing import shown
from semlens_audit.wording import capital, count, format_date

__all__ = ["StandingPage", "in_brief", "standing_page"]


@dataclass(frozen=True)
class StandingPage:
    """The section on the instrument's qualification."""

    statement: str
    rates: Table | None
    differences: tuple[str, ...]
    identity: tuple[Fact, ...]


def in_brief(standing: StandingRecord) -> str:
    """For page one."""
    if standing.qualification is None:
        return "Not known: this instrument has not been qualified on models whose true reliance is known."
    if standing.differences:
        number = count(len(standing.differences), "point")
        return f"Not known for this audit: it differs from what the instrument was qualified on in {number}."
    rates = {rate.name: rate for rate in standing.rates}
    hit, alarm = rates.get("true_positive"), rates.get("false_positive_small")
    if hit is None or alarm is None or hit.value is None or alarm.value is None:
        return "Not known: the qualification holds too few models to state error rates."
    return (
        f"On models whose true reliance is known, it flagged {shown(hit)} of the artefacts that move the margin by 1 logit or more, "
        f"and falsely {shown(alarm)} of those that move it by less than 0.5."
    )


def standing_page(record: AuditRecord) -> StandingPage | None:
    """The section, or ``None`` for a record of an older version, which says nothing of it."""
    standing = record.qualification
    if standing is None:
        return None
    identity: tuple[Fact, ...] = ()
    if standing.qualification is not None:
        detail = standing.qualification.detail
        identity = (
            Fact("Qualification", f"{standing.qualification.name}, {format_date(str(detail.get('created', '')))}"),
            Fact("Tool", str(detail.get("tool", ""))),
            Fact("Tested on", f"{detail.get('models')} models, {detail.get('pairs')} pairs of model and artefact"),
            Fact("SHA-256", standing.qualification.sha256),
        )
    rates = None
    if standing.rates:
        rows = tuple((rate.label, shown(rate), str(rate.n), str(rate.models)) for rate in standing.rates)
        rates = Table(
            "Operating characteristics that apply to this audit, each with its 95 % interval",
            ("Quantity", "Rate", "Pairs", "Models"),
            rows,
            numeric=(1, 2, 3),
        )
    return StandingPage(
        statement=standing.statement,
        rates=rates,
        differences=tuple(capital(clause) + "." for clause in standing.differences),
        identity=identity,
    )
