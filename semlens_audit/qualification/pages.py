"""From a qualification to its report: one offline HTML file and one PDF, like a laboratory's calibration certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semlens_audit import report
from semlens_audit.certificate import ALL, Group, MemberRecord, Pair, Qualification, WorldRecord
from semlens_audit.figures import PAPER, SCREEN, Figure, Palette
from semlens_audit.pages import Fact, Table
from semlens_audit.qualification import plots
from semlens_audit.qualification.rates import AIMS, LARGE, SMALL, reached
from semlens_audit.records import RateRecord
from semlens_audit.standing import shown
from semlens_audit.wording import DASH, NARROW, STATES, capital, count, format_date, format_number, join, shorten

__all__ = ["CertificatePage", "WorldPage", "best", "headline", "judged", "make_page", "write"]

_PARTS = {"held_back": "held back", "development": "development"}


@dataclass(frozen=True)
class WorldPage:
    """One rendered world with its plots."""

    name: str
    title: str
    rates: Table
    plots: tuple[Figure, ...]
    legend: tuple[tuple[str, str], ...]
    """Architecture and the shape of its marks."""


@dataclass(frozen=True)
class CertificatePage:
    """Everything that the report shows."""

    title: str
    created: str
    created_iso: str
    tool: str
    digest: str
    digest_short: str
    headline: str
    story: tuple[Fact, ...]
    short: tuple[str, ...]
    """Where the instrument falls short of its aims."""
    rates: Table
    worlds: tuple[WorldPage, ...]
    members: Table
    limits: tuple[str, ...]
    identities: Table
    settings: tuple[Fact, ...]
    environment: tuple[Fact, ...]
    command: str
    pairs: Table


def best(qualified: Qualification, world: str = ALL) -> Group | None:
    """Rates over held-back models; over all where none was held back."""
    return qualified.group("held_back", world) or qualified.group(ALL, world)


def _rate_table(caption: str, columns: Sequence[tuple[str, Group | None]]) -> Table:
    first = next(group for _, group in columns if group is not None)
    rows = []
    for rate in first.rates:
        cells = []
        for _, group in columns:
            own = group.rate(rate.name) if group is not None else None
            cells.append(
                DASH if own is None else f"{shown(own)}, n{NARROW}={NARROW}{own.n}" if own.value is not None else "not measured"
            )
        rows.append((rate.label, *cells, judged(rate)))
    return Table(caption, ("Quantity", *(name for name, _ in columns), "Aim"), tuple(rows))


def judged(rate: RateRecord) -> str:
    """The aim of a rate and whether it is reached: by the whole interval, by the value alone, or not."""
    aim = AIMS.get(rate.name)
    if aim is None:
        return DASH
    state = reached(rate)
    if state is None or rate.low is None or rate.high is None:
        return f"{aim.words}: not measured"
    settled = aim.low <= rate.low and rate.high <= aim.high
    return f"{aim.words}: {'falls short' if not state else 'reached' if settled else 'met in value, not by the whole interval'}"


def headline(qualified: Qualification) -> str:
    """The result in a sentence or two."""
    group = best(qualified)
    tested = f"{count(len(qualified.members), 'model')} in {count(len(qualified.worlds), 'rendered world')}"
    if group is None:
        return f"Tested on {tested}."
    hit, alarm = group.rate("true_positive"), group.rate("false_positive_small")
    where = "held-back models" if group.part == "held_back" else "all models"
    return (
        f"Tested on {tested}. Of the artefacts that move a model's margin by {LARGE:g} logit or more, the verdict flagged "
        f"{shown(hit)}; of those that move it by less than {SMALL:g} logits, it flagged {shown(alarm)} ({where})."
    )


def _story(qualified: Qualification) -> tuple[Fact, ...]:
    held = sum(member.part == "held_back" for member in qualified.members)
    worlds = join([f"“{world.name}” ({world.title})" for world in qualified.worlds])
    places = "worlds" if len(qualified.worlds) > 1 else "world"
    scenes, samples = qualified.parameters["scenes"], qualified.parameters["samples"]
    return (
        Fact(
            "What was tested",
            f"The audit of this tool, from model and images to verdict, on {count(len(qualified.members), 'model')} of the "
            f"families {join(list(qualified.attributions))}, in the {places} {worlds}. Each artefact of each world with "
            "each model is one pair: "
            f"{count(len(qualified.pairs), 'pair')}.",
        ),
        Fact(
            "What is true",
            f"For each pair {count(scenes, 'scene')} were rendered twice, without and with the artefact and all else equal. The mean "
            "change of the class margin between the two is the true effect. The audit never sees these scenes.",
        ),
        Fact(
            "What the audit saw",
            f"{count(samples, 'rendered test image')} in which no artefact goes with a class, the model, the spec and the foundation "
            "model: what a user gives it. A pair is flagged if any finding on the artefact is not satisfied.",
        ),
        Fact(
            "Parts",
            f"Definitions and thresholds may be chosen on {len(qualified.members) - held} models; {held} were held back, and the rates "
            "are those on them."
            if held
            else "No model was held back; the rates are those of all models.",
        ),
        Fact(
            "How sure it is",
            "95 % intervals: exact (Clopper-Pearson) for proportions, over whole models drawn again and again for areas and "
            "correlations. Pairs of one model are not independent, so the exact intervals are somewhat too narrow.",
        ),
    )


def _shortcomings(qualified: Qualification) -> tuple[str, ...]:
    group = best(qualified)
    if group is None:
        return ()
    return tuple(
        f"{rate.label}: {shown(rate)}; the aim is {AIMS[rate.name].words}."
        for rate in group.rates
        if rate.name in AIMS and reached(rate) is False
    )


def _world_page(qualified: Qualification, world: WorldRecord, palette: Palette) -> WorldPage:
    pairs = [pair for pair in qualified.pairs if pair.world == world.name]
    families = list(dict.fromkeys(pair.architecture for pair in pairs))
    marks = plots.colours(list(qualified.attributions), palette)
    about = f"{world.name}, {count(len(pairs), 'pair')}"
    figures = (
        plots.reliance(
            pairs, "share", "share of relevance", marks, palette, f"Mechanistic share against the true effect: {about}."
        ),
        plots.reliance(
            pairs, "effect", "size of the behavioural effect, logits", marks, palette,
            f"Size of the behavioural effect against that of the true effect: {about}.",
        ),
        plots.agreement(pairs, marks, palette, f"Behavioural effect with interval against the true effect: {about}."),
        plots.roc(pairs, palette, f"ROC curves at a true effect of {LARGE:g} logit: {about}."),
    )  # fmt: skip
    columns = [("all", best(qualified, world.name))]
    part = columns[0][1].part if columns[0][1] else ALL
    columns += [(name, qualified.group(part, world.name, name)) for name in families if len(families) > 1]
    where = "held-back models" if part == "held_back" else "all models"
    return WorldPage(
        name=world.name,
        title=world.title,
        rates=_rate_table(f"Operating characteristics in the world “{world.name}”, {where}, by architecture", columns),
        plots=figures,
        legend=tuple((name, marks[name][1]) for name in families),
    )


def _ties(member: MemberRecord) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {100 * chance:.0f}\u00a0%" for name, chance in member.tied.items()) or "none"


def _members(qualified: Qualification) -> Table:
    rows = tuple(
        (
            member.name + (" (comes with the tool)" if member.shipped else ""),
            member.architecture,
            _PARTS[member.part],
            _ties(member),
            f"{100 * member.accuracy:.0f}\u00a0%",
            STATES[member.verdict],
        )
        for member in qualified.members
    )
    caption = (
        "Models. Shortcut: how often an artefact came with the audited class in the training images (with the other class as "
        "seldom); every other artefact was in a quarter of both. Accuracy: where no artefact goes with a class"
    )
    return Table(caption, ("Model", "Architecture", "Part", "Shortcut", "Accuracy", "Verdict"), rows, numeric=(4,))


def _estimate(low: float | None, value: float | None, high: float | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None or low is None or high is None:
        return "not measured"
    return f"{format_number(scale * value, digits)} ({format_number(scale * low, digits)} to {format_number(scale * high, digits)})"


def _pair_row(pair: Pair) -> tuple[str, ...]:
    true, seen, share = pair.true_effect, pair.effect, pair.share
    result = "flagged" if pair.flagged else "satisfied" if pair.passed else "undecided"
    return (
        f"{pair.member}: {pair.artefact.replace('_', ' ')}",
        _estimate(true.low, true.value, true.high),
        _estimate(seen.low, seen.value, seen.high),
        _estimate(share.low, share.value, share.high, 100, 0),
        result + (f", {pair.confirmation.replace('_', ' ')}" if pair.confirmation else ""),
    )


def _limits(qualified: Qualification) -> tuple[str, ...]:
    found = [
        "The rates hold for rendered worlds, for the families of architectures, the foundation models, the settings and the "
        "criteria listed here. On other data the foundation model may recognise concepts less well, and then they do not hold.",
        "In the test data of these audits no artefact goes with a class. Where test data tie an artefact to the class, the "
        "behavioural line loses power, and with no counterexample at all it is not measured.",
        "Rates are of findings on single artefacts. They say nothing about criteria on valid concepts, on what remains unexplained "
        "or on clarity, polysemanticity and redundancy.",
        "What nobody declared as a concept is not looked for; no rate here says how often an undeclared shortcut is missed.",
    ]
    if qualified.quick:
        found.insert(
            0,
            "This is the quick part of the qualification: few models, trained briefly. It shows that the instrument works; its "
            "intervals are wide, and the full part decides.",
        )
    return tuple(found)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Parameters of the campaign by their name, those of a part behind the name of the part."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", str(value)


def make_page(qualified: Qualification, palette: Palette) -> CertificatePage:
    """Everything that the report of `qualified` shows, in the colours of a medium."""
    whole = qualified.sha256
    part = best(qualified)
    columns = [
        ("all", part),
        *((world.name, best(qualified, world.name)) for world in qualified.worlds[1:] and qualified.worlds),
    ]
    where = "held-back models" if part is not None and part.part == "held_back" else "all models"
    rows = [
        (f"Foundation model, {world.name}", world.foundation_model.name, world.foundation_model.sha256)
        for world in qualified.worlds
    ]
    rows += [(f"Spec, {world.name}", world.spec, world.spec_sha256) for world in qualified.worlds]
    revision = f", revision {qualified.tool.revision}" if qualified.tool.revision else ""
    return CertificatePage(
        title="Qualification of the audit instrument" + (": quick part" if qualified.quick else ""),
        created=format_date(qualified.created),
        created_iso=qualified.created,
        tool=f"{qualified.tool.name} {qualified.tool.version}{revision}",
        digest=whole,
        digest_short=shorten(whole),
        headline=headline(qualified),
        story=_story(qualified),
        short=_shortcomings(qualified),
        rates=_rate_table(f"Operating characteristics, {where}, with 95 % intervals", columns),
        worlds=tuple(_world_page(qualified, world, palette) for world in qualified.worlds),
        members=_members(qualified),
        limits=_limits(qualified),
        identities=Table("What the instrument consisted of", ("What", "Name", "SHA-256"), tuple(rows), mono=(2,)),
        settings=(
            *(Fact(capital(name.replace("_", " ")), str(value)) for name, value in qualified.settings.items()),
            *(Fact(f"Attribution, {name}", value) for name, value in qualified.attributions.items()),
            *(Fact(f"Audited layers, {name}", ", ".join(layers)) for name, layers in qualified.layers.items()),
            *(Fact(f"Campaign: {name}", value) for name, value in _flat(qualified.parameters)),
        ),
        environment=tuple(Fact(name, value) for name, value in qualified.environment.items()),
        command=qualified.command,
        pairs=Table(
            "Every pair: true and behavioural effect in logits, mechanistic share in per cent, each with its 95 % interval",
            ("Model: artefact", "True effect", "Behavioural effect", "Share", "Verdict"),
            tuple(_pair_row(pair) for pair in qualified.pairs),
        ),
    )


def render(qualified: Qualification, palette: Palette) -> str:
    """The report as one HTML text, for screen or paper."""
    sheets = report.ON_SCREEN if palette.inline else report.ON_PAPER
    return report.render_template("certificate.html.j2", make_page(qualified, palette), sheets)


def write(qualified: Qualification, folder: Path, *, pdf: bool) -> list[Path]:
    """Write ``qualification.html`` and, if asked, ``qualification.pdf``, each in one step.

    Raises
    ------
    AuditError
        As `semlens_audit.pdf.to_pdf`; the HTML file is written by then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    html = folder / "qualification.html"
    report.replace(html, render(qualified, SCREEN).encode("utf-8"))
    written = [html]
    if pdf:
        from semlens_audit.pdf import to_pdf

        target = folder / "qualification.pdf"
        report.replace(target, to_pdf(render(qualified, PAPER), qualified.sha256, qualified.created))
        written.append(target)
    return written
