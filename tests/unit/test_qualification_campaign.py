"""Truth by toggled scenes, entrants, and a campaign that goes on after a kill; the whole verb once in miniature."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from semlens_audit.certificate import read_qualification
from semlens_audit.cli import app
from semlens_audit.errors import ExitCode, UsageError
from semlens_audit.phantom import world as phantom
from semlens_audit.qualification import campaign, certify, entrants, pages, truth
from semlens_audit.qualification.entrants import Entrant, Recipe, weights_file
from semlens_audit.qualification.population import Member
from semlens_audit.qualification.worlds import WORLDS, available

DERMOSCOPY = WORLDS["dermoscopy"]
TINY = campaign.Parameters(
    recipe=Recipe(renders=64, epochs=0.01), scenes=6, samples=80, repeats=0,
    measurement={"bootstrap": 100, "null_sets": 100, "intervention": "none", "minimum_samples": 20},
)  # fmt: skip


def entrant(number: int = 900, **tied: float) -> Entrant:
    return Entrant(Member("dermoscopy", "residual", tied, number), TINY.recipe)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qualification")


class TestTruth:
    def test_effects_are_those_of_the_world_itself(self, work: Path) -> None:
        """The same scenes through the world's own function, which renders them anew."""

        def logits(batch: np.ndarray) -> np.ndarray:
            dark = batch.astype(np.float64).mean(axis=(1, 2, 3)) / 50
            return np.stack([-dark, dark], axis=1)

        scenes = truth.truth_set(DERMOSCOPY, 6, work / "truth")
        found, accuracy = truth.true_effects(logits, scenes, 1)
        expected = phantom.true_effects(logits, phantom.Population(), 6, truth.SEED, phantom.ARTEFACTS)
        assert set(found) == set(phantom.ARTEFACTS)
        for name, effect in expected.items():
            assert found[name][0].value == pytest.approx(effect.mean)
            assert found[name][0].n == 6
        cases = phantom.sample(phantom.Population(), 6, truth.SEED)
        assert accuracy == pytest.approx(np.mean([case.label == 1 for case in cases]))

    def test_scenes_are_rendered_once(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = truth.truth_set(DERMOSCOPY, 6, work / "truth")

        def never(*_: object) -> None:
            raise AssertionError("rendered again")

        monkeypatch.setattr(phantom, "images", never)
        again = truth.truth_set(DERMOSCOPY, 6, work / "truth")
        assert np.array_equal(first.other, again.other)

    def test_accuracy_changes_where_the_artefact_decides(self, work: Path) -> None:
        scenes = truth.truth_set(DERMOSCOPY, 6, work / "truth")
        on = np.where(scenes.present[0][:, None, None, None], scenes.base, scenes.other[0])
        with_it = {picture.tobytes() for picture in on}

        def logits(batch: np.ndarray) -> np.ndarray:
            """Always the audited class where the first artefact is there, else always the other."""
            seen = np.array([picture.tobytes() in with_it for picture in batch], dtype=float)
            return np.stack([1 - seen, seen], axis=1)

        found, _ = truth.true_effects(logits, scenes, 1)
        margin, accuracy = found[scenes.artefacts[0]]
        assert margin.value == pytest.approx(2.0)
        assert accuracy.value == pytest.approx(np.mean(np.where(scenes.labels == 1, 1.0, -1.0)))

    def test_the_interval_is_students(self) -> None:
        from scipy.stats import t

        values = np.array([0.0, 1.0, 4.0, -2.0, 3.0])
        found = truth.estimate(values)
        low, high = t.interval(0.95, 4, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(5))
        assert (found.low, found.high) == pytest.approx((low, high))
        with pytest.raises(ValueError, match="at least two"):
            truth.estimate(values[:1])


class TestEntrants:
    def test_keys_follow_what_weights_follow_from(self) -> None:
        one = entrant(ruler=0.95)
        assert one.key() == entrant(ruler=0.95).key()
        changed = [
            entrant(ruler=0.9),
            entrant(901, ruler=0.95),
            dataclasses.replace(one, recipe=Recipe(65, 0.01)),
            dataclasses.replace(one, member=dataclasses.replace(one.member, architecture="plain")),
        ]
        assert len({one.key(), *(other.key() for other in changed)}) == 5

    def test_the_tie_is_towards_the_audited_class(self) -> None:
        plan = DERMOSCOPY.plan()
        assert DERMOSCOPY.population(plan, {"ruler": 0.95}).tied == {"ruler": (pytest.approx(0.05), 0.95)}

    def test_the_full_part_has_every_artefact_in_every_architecture(self) -> None:
        found = entrants.full([DERMOSCOPY])
        for architecture in ("residual", "plain", "transformer"):
            tied = {name for one in found if one.member.architecture == architecture for name in one.member.tied}
            assert tied == set(phantom.ARTEFACTS)
        assert {one.part for one in found} == {"development", "held_back"}
        assert len({one.name for one in found}) == len(found)

    def test_the_quick_part_holds_the_twins_and_all_architectures(self) -> None:
        found = entrants.quick(available(), certify.QUICK.recipe)
        assert {one.shipped for one in found if one.shipped} == {"shortcut", "clean"}
        assert {one.member.architecture for one in found} == {"residual", "plain", "transformer"}
        assert {one.member.world for one in found} == {world.name for world in available()}
        assert len({one.name for one in found}) == len(found)

    def test_no_model_left_is_an_error(self) -> None:
        with pytest.raises(UsageError) as caught:
            certify.choose(certify.FULL, brief=False, only=["no such model"])
        assert caught.value.slug == "no-members"


class TestResults:
    def test_a_line_cut_short_is_left_out_and_mended(self, work: Path) -> None:
        path = work / "some.jsonl"
        result = _result("a")
        campaign._append(path, result)
        with path.open("a") as stream:
            stream.write('{"key": "half')
        assert set(campaign.kept(path)) == {"a"}
        campaign._append(path, _result("b"))
        assert set(campaign.kept(path)) == {"a", "b"}
        assert len(path.read_text().splitlines()) == 2

    def test_a_line_that_is_no_result_is_an_error_with_its_place(self, work: Path) -> None:
        path = work / "bad.jsonl"
        path.write_text('{"key": 1}\n')
        with pytest.raises(UsageError) as caught:
            campaign.kept(path)
        assert (caught.value.slug, caught.value.problems[0].line) == ("bad-results", 1)

    def test_keys_follow_the_parameters(self, work: Path) -> None:
        one = campaign.Campaign([entrant()], TINY, work, jobs=0).key(entrant())
        more = dataclasses.replace(TINY, scenes=7)
        assert campaign.Campaign([entrant()], more, work, jobs=0).key(entrant()) != one


def _result(key: str) -> campaign.Result:
    from tests.unit.test_standing import qualification

    some = qualification()
    return campaign.Result(key=key, member=some.members[0], pairs=some.pairs[:1], world=some.worlds[0])


_KILLED = """
import sys
from pathlib import Path
from semlens_audit import engine
from semlens_audit.qualification.campaign import Campaign
from tests.unit.test_qualification_campaign import TINY, entrant

run = engine.run
def audited(plan, **more):
    record = run(plan, **more)
    if plan.audit.subject.name.endswith("clean"):
        print("second audit done, not yet kept", flush=True)
        import time
        time.sleep(60)
    return record
engine.run = audited
if __name__ == "__main__":
    Campaign([entrant(ruler=0.95), entrant(901)], TINY, Path(sys.argv[1]), jobs=0).run()
"""


@pytest.fixture(scope="module")
def killed(work: Path) -> Path:
    """A work folder whose campaign was killed after the second audit, before its result was kept."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(work)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert "second audit done" in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGKILL)
    return work


class TestCampaign:
    def test_a_killed_campaign_goes_on_where_it_was(self, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = entrant(ruler=0.95), entrant(901)
        assert [result.member.name for result in campaign.kept(killed / "results.jsonl").values()] == [first.name]
        trained = {path: path.stat().st_mtime_ns for path in (weights_file(first, killed), weights_file(second, killed))}
        audited = []
        run = campaign.engine.run

        def counted(plan, **more):  # type: ignore[no-untyped-def]
            audited.append(plan.audit.subject.name)
            return run(plan, **more)

        monkeypatch.setattr(campaign.engine, "run", counted)
        results = campaign.Campaign([first, second], TINY, killed, jobs=0).run()
        assert audited == [second.name]
        assert [result.member.name for result in results] == [first.name, second.name]
        assert {path: path.stat().st_mtime_ns for path in trained} == trained
        for result in results:
            assert [pair.artefact for pair in result.pairs] == list(phantom.ARTEFACTS)
            assert all(pair.findings for pair in result.pairs)

    def test_the_verb_writes_certificate_and_report(self, killed: Path, tmp_path: Path) -> None:
        outcome = certify.certify(
            [entrant(ruler=0.95), entrant(901)], TINY, brief=True, work=killed, out=tmp_path, pdf=False, command="semlens-audit qualify",
            jobs=0, progress=campaign.SilentProgress(),
        )  # fmt: skip
        qualified = read_qualification(tmp_path / "qualification.json")
        assert qualified == outcome.qualification
        assert len(qualified.pairs) == 2 * len(phantom.ARTEFACTS)
        thresholds = {
            check.criterion.threshold for check in DERMOSCOPY.plan().spec.checks if check.kind == "behavioural_effect"
        }
        assert {qualified.worlds[0].criteria["behavioural_effect"]} == thresholds
        html = (tmp_path / "qualification.html").read_text()
        assert "quick part" in html
        for member in qualified.members:
            assert member.name in html
        assert certify.summary(outcome)["pairs"] == len(qualified.pairs)

    def test_trained_ahead_gives_the_weights_of_training_here(self, killed: Path, tmp_path: Path) -> None:
        one = entrant(ruler=0.95)
        with entrants.Trainer([one], tmp_path, jobs=1) as trainer:
            path = trainer.weights(one)
        assert path.parent == tmp_path / "models"
        assert path.stat().st_size == weights_file(one, killed).stat().st_size

    def test_leaving_early_ends_what_trains(self, tmp_path: Path) -> None:
        slow = dataclasses.replace(entrant(), recipe=Recipe(4000, 1.0))
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt), entrants.Trainer([slow], tmp_path, jobs=1) as trainer:
            assert trainer.busy == 1
            raise KeyboardInterrupt
        assert time.monotonic() - begun < 30
        assert not weights_file(slow, tmp_path).exists()


class TestVerb:
    def test_help_names_the_two_parts(self) -> None:
        result = CliRunner().invoke(app, ["qualify", "--help"])
        assert result.exit_code == 0
        assert "--quick" in result.output
        assert "true reliance" in " ".join(result.output.split())

    def test_in_miniature(self, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(certify, "QUICK", TINY)
        monkeypatch.setattr(certify, "quick", lambda _worlds, _recipe: (entrant(ruler=0.95), entrant(901)))
        arguments = ["qualify", "--quick", "--only", "ruler95", "--jobs", "0", "--no-pdf", "--json", "-q"]
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--work", str(killed)])
        assert result.exit_code == ExitCode.SATISFIED, result.output
        said = json.loads(result.stdout)
        assert said["models"] == 1
        assert said["groups"]
        assert {Path(path).name for path in said["files"]} == {"qualification.json", "qualification.html"}

    def test_an_unknown_name_is_a_usage_error(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["qualify", "--only", "nobody", "--work", str(tmp_path), "--out", str(tmp_path)])
        assert result.exit_code == ExitCode.USAGE


class TestPages:
    def test_what_falls_short_is_printed_as_such(self) -> None:
        from semlens_audit.figures import PAPER
        from tests.unit.test_standing import pairs, qualification

        wrong = tuple(
            pair.model_copy(update={"findings": {"a|layer1": "not_satisfied"}}) if pair.artefact == "hair" else pair
            for pair in pairs()
        )
        page = pages.make_page(qualification(pairs=wrong, groups=certify_groups(wrong)), PAPER)
        assert any("below 0.5 logits that the verdict flags" in line and "100" in line for line in page.short)
        assert any("falls short" in row[-1] for row in page.rates.rows)

    def test_the_same_qualification_gives_the_same_bytes(self) -> None:
        from semlens_audit.figures import SCREEN
        from tests.unit.test_standing import qualification

        assert pages.render(qualification(), SCREEN) == pages.render(qualification(), SCREEN)


def certify_groups(some):  # type: ignore[no-untyped-def]
    from semlens_audit.qualification import rates

    return rates.groups(some)
