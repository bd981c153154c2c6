"""The campaign: every entrant is trained, its truth told by the renderer, and audited by the very engine that users run.

What is finished is a line of ``results.jsonl`` in the work folder, under a key that covers everything it follows from, so that a
killed or interrupted campaign goes on where it was, and a changed definition never meets an old result.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from semlens_audit import engine, provenance
from semlens_audit.certificate import Estimate, MemberRecord, Pair, Qualification, Repeat, WorldRecord
from semlens_audit.data import open_data
from semlens_audit.digest import canonical_json, digest
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.foundation import foundation_digest
from semlens_audit.plan import AuditPlan, MeasurementSettings, Preprocessing
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.qualification import rates
from semlens_audit.qualification.architectures import ARCHITECTURES, SIZE
from semlens_audit.qualification.entrants import Entrant, Recipe, Trainer, cores, model_source
from semlens_audit.qualification.truth import SEED, TruthSet, true_effects, truth_set
from semlens_audit.qualification.worlds import WORLDS
from semlens_audit.records import AuditRecord, Finding, Measurement, State
from semlens_audit.standing import code_digests, shared_settings

__all__ = ["Campaign", "Parameters", "Result", "audit_plan", "kept"]

DATA_SEED, AUDIT_SEED = 30_000, 1
_TURNS = 100
"""Seeds that each entrant has for itself, so that errors of test data are independent from entrant to entrant."""
_OF_THE_MODEL = {"concept_not_used", "behavioural_effect", "subgroup_gap", "pair_effect"}
"""Kinds of checks that say something about a model; a check of the data alone is none."""


@dataclass(frozen=True)
class Parameters:
    """What a campaign costs and how exact it is.

    Parameters
    ----------
    recipe
        How members are trained.
    scenes
        Scenes that the truth is told on.
    samples
        Test samples of each audit.
    repeats
        Further audits on other test data with other seeds.
    every
        Every how many-th entrant of a world is audited again, and has components switched off where the settings ask for it.
    layers
        How many of the architecture's layers are audited.
    measurement
        Settings that differ from the defaults.
    """

    recipe: Recipe = field(default_factory=Recipe)
    scenes: int = 400
    samples: int = 1000
    repeats: int = 1
    every: int = 3
    layers: int = 1
    measurement: dict[str, Any] = field(default_factory=lambda: {"intervention": "mean"})

    @property
    def settings(self) -> MeasurementSettings:
        """Settings of every audit, but for the attribution, which is the architecture's."""
        return MeasurementSettings.model_validate(self.measurement)

    def thorough(self, entrant: Entrant) -> bool:
        """Whether an entrant is audited again and has components switched off."""
        return entrant.member.number % self.every == 0


class Result(BaseModel):
    """What came of one entrant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    key: str
    member: MemberRecord
    pairs: tuple[Pair, ...]
    repeats: tuple[Repeat, ...] = ()
    world: WorldRecord


def audit_plan(entrant: Entrant, weights: Path, parameters: Parameters, work: Path, *, turn: int = 0) -> AuditPlan:
    """The audit of one entrant: the world's own, bound to the entrant's model and to test data it has never seen.

    Parameters
    ----------
    weights
        File of its weights.
    turn
        0, or the number of the repeat, which has other test data and other seeds.
    """
    plan, architecture = entrant.world.plan(), ARCHITECTURES[entrant.member.architecture]
    settings = architecture.settings(parameters.settings)
    if turn or not parameters.thorough(entrant):  # findings, which no intervention changes, are what repeats compare
        settings = settings.model_copy(update={"intervention": "none"})
    store = work.resolve() / "stores" / f"{entrant.name}-{turn}.duckdb"
    seed = _TURNS * entrant.member.number + turn
    audit = plan.audit.model_copy(
        update={
            "audit": f"qualify-{digest(entrant.name)[:12]}",
            "title": f"Qualification: {entrant.name}",
            "subject": plan.audit.subject.model_copy(
                update={
                    "name": entrant.name,
                    "model": model_source(entrant, weights.resolve()),
                    "preprocessing": Preprocessing(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3),
                }
            ),
            "layers": architecture.layers[: parameters.layers],
            "data": plan.audit.data.model_copy(update={"samples": parameters.samples, "seed": DATA_SEED + seed}),
            "measurement": settings,
            "seed": AUDIT_SEED + seed,
            "store": str(store),
        }
    )
    return plan.model_copy(update={"audit": audit, "audit_digest": digest(audit.model_dump(mode="json"))})


def kept(path: Path) -> dict[str, Result]:
    """Results of a file by their key; a last line that a kill cut short is left out.

    Raises
    ------
    UsageError
        ``bad-results``: a line other than the last is no result.
    """
    if not path.is_file():
        return {}
    found: dict[str, Result] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            result = Result.model_validate_json(line)
        except ValidationError as error:
            hint = "Remove that line, or the file; what it held is then done again."
            raise UsageError(
                "bad-results", "The line is no result of a qualification.", hint, file=str(path), line=number
            ) from error
        found[result.key] = result
    return found


def _append(path: Path, result: Result) -> None:
    """Add one line, after cutting off whatever a kill left of the last; campaigns that share the file take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (canonical_json(result.model_dump(mode="json")) + "\n").encode("utf-8")
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


class Campaign:
    """A qualification under way.

    Parameters
    ----------
    entrants
        Who takes part, in order.
    parameters
        See `Parameters`.
    work
        Folder of weights, renders, stores and results; what it holds is used again.
    jobs
        Processes that train ahead of the audits; by default as many as there are processors to spare.
    """

    def __init__(self, entrants: Sequence[Entrant], parameters: Parameters, work: Path, *, jobs: int | None = None) -> None:
        self.entrants, self.parameters, self.work = tuple(entrants), parameters, Path(work)
        self.jobs = max(0, cores() - 1) if jobs is None else jobs
        self._truth: dict[str, TruthSet] = {}
        if not self.entrants:
            raise UsageError("no-members", "No model of the qualification is left.", "Name fewer restrictions.")

    @property
    def results_file(self) -> Path:
        """Where results are kept."""
        return self.work / "results.jsonl"

    def key(self, entrant: Entrant) -> str:
        """Digest of everything that the result of an entrant follows from."""
        plan = entrant.world.plan()
        return digest(
            {
                "entrant": [entrant.name, entrant.part, entrant.key()],
                "sources": entrant.world.sources(),
                "spec": plan.spec_digest,
                "foundation": foundation_digest(plan),
                "blind": entrant.world.blind,
                "code": code_digests(),
                "truth": SEED,
                "parameters": asdict(self.parameters),
            }
        )

    def run(self, *, progress: Progress | None = None, announce: Callable[[str], None] | None = None) -> tuple[Result, ...]:
        """Do what is left to do; every finished entrant is kept at once.

        Parameters
        ----------
        progress
            Advanced by one for each entrant.
        announce
            Told what came of each, in one line.

        Returns
        -------
        tuple of Result
            Of all entrants, in order, those done by earlier runs among them.
        """
        progress, announce = progress or SilentProgress(), announce or (lambda _line: None)
        keys = {entrant.name: self.key(entrant) for entrant in self.entrants}
        done = kept(self.results_file)
        todo = [entrant for entrant in self.entrants if keys[entrant.name] not in done]
        with (
            Trainer(todo, self.work, self.jobs) as trainer,
            progress.stage("Qualification, models", len(self.entrants), len(self.entrants) - len(todo)) as advance,
        ):
            for entrant in todo:
                weights = trainer.weights(entrant)
                _threads(max(1, cores() - trainer.busy))
                result = self._judge(entrant, keys[entrant.name], weights)
                _append(self.results_file, result)
                done[result.key] = result
                announce(_line(result))
                advance(1)
        return tuple(done[keys[entrant.name]] for entrant in self.entrants)

    def _judge(self, entrant: Entrant, key: str, weights: Path) -> Result:
        """Truth and audit of one entrant."""
        plan = audit_plan(entrant, weights, self.parameters, self.work)
        effects, accuracy = self._true_effects(entrant, plan)
        record = _audit(plan, entrant.world.blind)
        first = _pairs(entrant, record, effects)
        repeats: list[Repeat] = []
        for turn in range(1, (self.parameters.repeats if self.parameters.thorough(entrant) else 0) + 1):
            again = _audit(audit_plan(entrant, weights, self.parameters, self.work, turn=turn), entrant.world.blind)
            repeats += _repeats(entrant, first, _pairs(entrant, again, effects))
        member = MemberRecord(
            name=entrant.name,
            world=entrant.member.world,
            architecture=entrant.member.architecture,
            part=entrant.part,
            tied=dict(entrant.member.tied),
            weights_sha256=record.subject.weights_sha256,
            accuracy=accuracy,
            verdict=record.verdict.state,
            shipped=entrant.shipped is not None,
        )
        return Result(key=key, member=member, pairs=first, repeats=tuple(repeats), world=_world(entrant, plan, record))

    def _true_effects(self, entrant: Entrant, plan: AuditPlan) -> tuple[dict[str, tuple[Estimate, Estimate]], float]:
        from semlens_audit.qualification import training
        from semlens_audit.subject import load_subject

        name = entrant.member.world
        if name not in self._truth:
            self._truth[name] = truth_set(entrant.world, self.parameters.scenes, self.work / "truth", size=SIZE)
        model = load_subject(plan, allow_code=True).model
        return true_effects(lambda pictures: training.logits(model, pictures), self._truth[name], entrant.world.audited(plan))

    def qualification(
        self, results: Sequence[Result], *, quick: bool, command: str, now: datetime | None = None
    ) -> Qualification:
        """The certificate: rates over all results, with everything that they were found under."""
        pairs = tuple(pair for result in results for pair in result.pairs)
        repeats = tuple(repeat for result in results for repeat in result.repeats)
        families = dict.fromkeys(result.member.architecture for result in results)
        environment = provenance.environment()
        return Qualification(
            tool=provenance.tool(),
            created=(now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
            command=command,
            quick=quick,
            code=code_digests(),
            settings=shared_settings(self.parameters.settings),
            attributions={name: ARCHITECTURES[name].attribution for name in families},
            layers={name: ARCHITECTURES[name].layers[: self.parameters.layers] for name in families},
            parameters=json.loads(canonical_json(asdict(self.parameters))),
            worlds=tuple({result.world.name: result.world for result in results}.values()),
            members=tuple(result.member for result in results),
            pairs=pairs,
            repeats=repeats,
            groups=rates.groups(pairs, repeats),
            environment={"python": platform.python_version(), "platform": environment.platform, **environment.packages},
        )


def _audit(plan: AuditPlan, blind: bool) -> AuditRecord:
    """Audit; blindly, what the renderer knows of each sample is withheld, and the foundation model has to see it."""
    data = open_data(plan)
    data = replace(data, attributes=None) if blind else data
    record = engine.run(plan, allow_code=True, command="semlens-audit qualify", data=data, comparisons=False)
    # Test data of its own make a store of no further use once the result is kept.
    Path(plan.audit.store).unlink(missing_ok=True)
    return record


def _threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


def _estimate(measurement: Measurement) -> Estimate:
    if measurement.value is None or measurement.interval is None:
        return Estimate(n=measurement.n, not_measured=measurement.not_measured)
    interval = measurement.interval
    return Estimate(value=measurement.value, low=interval.low, high=interval.high, n=measurement.n)


def _about(record: AuditRecord, artefact: str) -> Iterator[Finding]:
    for finding in record.findings:
        if finding.concepts == (artefact,) and finding.kind in _OF_THE_MODEL and finding.criterion.operator == "at_most":
            yield finding


def _pairs(entrant: Entrant, record: AuditRecord, effects: dict[str, tuple[Estimate, Estimate]]) -> tuple[Pair, ...]:
    """One pair an artefact of the world."""
    found = []
    name = record.class_layers[0].class_name
    for artefact, (true, accuracy) in effects.items():
        shares = [place.concepts[artefact] for place in record.class_layers if place.class_name == name]
        measured = [share for share in shares if share.value is not None]
        effect = next(item.effect for item in record.effects if item.concept == artefact and item.class_name == name)
        states: dict[str, State] = {}
        confirmations = []
        for finding in _about(record, artefact):
            states[f"{finding.check}|{finding.layer or '-'}"] = finding.state
            if finding.confirmation is not None and finding.line == "mechanistic":
                confirmations.append(finding.confirmation.state)
        if not states:
            raise ExecutionError(
                "no-findings", f"The spec of the world {entrant.member.world!r} has no check on its artefact {artefact!r}."
            )
        found.append(
            Pair(
                member=entrant.name,
                world=entrant.member.world,
                architecture=entrant.member.architecture,
                part=entrant.part,
                artefact=artefact,
                tied=entrant.member.tied.get(artefact),
                true_effect=true,
                accuracy_change=accuracy,
                share=_estimate(max(measured, key=lambda share: share.value or 0.0) if measured else shares[0]),
                effect=_estimate(effect),
                findings=states,
                confirmation=", ".join(dict.fromkeys(confirmations)) or None,
            )
        )
    return tuple(found)


def _repeats(entrant: Entrant, first: Sequence[Pair], second: Sequence[Pair]) -> list[Repeat]:
    return [
        Repeat(
            member=entrant.name,
            world=entrant.member.world,
            architecture=entrant.member.architecture,
            part=entrant.part,
            finding=f"{name}|{one.artefact}",
            first=state,
            second=other.findings[name],
        )
        for one, other in zip(first, second, strict=True)
        for name, state in one.findings.items()
    ]


def _world(entrant: Entrant, plan: AuditPlan, record: AuditRecord) -> WorldRecord:
    artefacts = tuple(entrant.world.renderer().ARTEFACTS)
    thresholds: dict[str, set[float]] = {}
    for artefact in artefacts:
        for finding in _about(record, artefact):
            thresholds.setdefault(finding.kind, set()).add(finding.criterion.threshold)
    return WorldRecord(
        name=entrant.member.world,
        title=WORLDS[entrant.member.world].title,
        spec=plan.spec.spec,
        spec_sha256=plan.spec_digest,
        audited_class=next(iter(plan.spec.classes)),
        artefacts=artefacts,
        criteria={kind: values.pop() for kind, values in sorted(thresholds.items()) if len(values) == 1},
        foundation_model=record.foundation_model,
        data_source=record.data.source,
        samples=record.data.samples,
        multiplicity=plan.spec.multiplicity,
    )


def _line(result: Result) -> str:
    """What came of an entrant, for whoever watches."""
    strong = sorted(result.pairs, key=lambda pair: -abs(pair.true_effect.value or 0.0))[:2]
    words = [
        f"{pair.artefact} {pair.true_effect.value or 0.0:+.2f} logits "
        f"({'flagged' if pair.flagged else 'passed' if pair.passed else 'undecided'})"
        for pair in strong
    ]
    wrong = sum(pair.flagged for pair in result.pairs if abs(pair.true_effect.value or 0.0) < rates.SMALL)
    more = f"; {wrong} false alarm{'s' if wrong > 1 else ''}" if wrong else ""
    return f"{result.member.name}: accuracy {100 * result.member.accuracy:.0f} %; {', '.join(words)}{more}"
