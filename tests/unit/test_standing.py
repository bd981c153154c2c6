"""What an audit stands on: every way to differ from what was qualified is named, and rates are claimed only without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semlens_audit import engine, standing
from semlens_audit.certificate import Estimate, MemberRecord, Pair, Qualification, WorldRecord, read_qualification
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.plan import AuditPlan, Criterion, MeasurementSettings
from semlens_audit.qualification import rates
from semlens_audit.records import UNQUALIFIED, Finding, FoundationRecord, Measurement, StandingRecord, ToolRecord
from semlens_audit.source_digest import code
from tests.unit import synthetic

FOUNDATION = FoundationRecord(name="phantom:clip", source="open_clip", sha256="f" * 64, dimension=64, text=True, statement="s")


def pairs(members: int = 6) -> tuple[Pair, ...]:
    found = []
    for number in range(members):
        for artefact, true, state in (("ruler", 3.0, "not_satisfied"), ("hair", 0.0, "satisfied")):
            found.append(
                Pair.model_validate(
                    {
                        "member": f"m{number}",
                        "world": "dermoscopy",
                        "architecture": "residual",
                        "part": "held_back" if number % 2 else "development",
                        "artefact": artefact,
                        "true_effect": Estimate(value=true, low=true - 0.1, high=true + 0.1, n=40),
                        "accuracy_change": Estimate(value=0.0, low=-0.1, high=0.1, n=40),
                        "share": Estimate(value=true / 4, low=0.0, high=1.0, n=40),
                        "effect": Estimate(value=true, low=true - 0.2, high=true + 0.2, n=40),
                        "findings": {"a|layer1": state, "b|-": state},
                    }
                )
            )
    return tuple(found)


def qualification(**changes: Any) -> Qualification:
    some = pairs()
    values: dict[str, Any] = {
        "tool": ToolRecord(version="0.1"),
        "created": "2026-01-02T03:04:05+00:00",
        "command": "semlens-audit qualify",
        "quick": False,
        "code": standing.code_digests(),
        "settings": standing.shared_settings(MeasurementSettings()),
        "attributions": {"residual": "lrp", "transformer": "activation_x_gradient"},
        "layers": {"residual": ("layer3",), "transformer": ("blocks.2",)},
        "parameters": {"scenes": 40, "samples": 100},
        "worlds": (
            WorldRecord(
                name="dermoscopy",
                title="rendered moles",
                spec="made-up",
                spec_sha256="0" * 64,
                audited_class="melanoma",
                artefacts=("ruler", "hair"),
                criteria={"concept_not_used": 0.2, "behavioural_effect": 1.0},
                foundation_model=FOUNDATION,
                data_source="phantom",
                samples=100,
                multiplicity=synthetic.plan().spec.multiplicity,
            ),
        ),
        "members": tuple(
            MemberRecord(
                name=name, world="dermoscopy", architecture="residual", part="held_back", weights_sha256="1" * 64, accuracy=0.9,
                verdict="not_satisfied",
            )
            for name in sorted({pair.member for pair in some})
        ),
        "pairs": some,
        "groups": rates.groups(some),
    }  # fmt: skip
    return Qualification.model_validate(values | changes)


def finding(threshold: float = 0.2, kind: str = "concept_not_used", concepts: tuple[str, ...] = ("ruler",)) -> Finding:
    return Finding.model_validate(
        {
            "check": "no-ruler",
            "kind": kind,
            "class_name": "melanoma",
            "layer": "layer1",
            "concepts": concepts,
            "line": "mechanistic",
            "statement": "s",
            "criterion": Criterion(at_most=threshold),
            "rationale": "r",
            "severity": "major",
            "measurement": Measurement(quantity="reliance", unit="share", n=0, not_measured="x"),
            "state": "not_measured",
            "explanation": "e",
        }
    )


def stand(
    tmp_path: Path,
    qualified: Qualification | None = None,
    *,
    plan: AuditPlan | None = None,
    foundation: FoundationRecord = FOUNDATION,
    data_source: str = "phantom",
    samples: int = 100,
    architecture: str = "timm resnet18",
    findings: tuple[Finding, ...] = (),
    attributions: tuple[str, ...] = (),
    **settings: Any,
) -> StandingRecord:
    path = tmp_path / "qualification.json"
    path.write_text((qualified or qualification()).model_dump_json())
    plan = plan or synthetic.plan()
    audit = plan.audit.model_copy(
        update={
            "qualification": str(path),
            "measurement": MeasurementSettings(**settings),
            "layers": plan.audit.layers,
        }
    )
    return standing.standing(
        plan.model_copy(update={"audit": audit}),
        foundation=foundation,
        data_source=data_source,
        samples=samples,
        architecture=architecture,
        findings=findings or (finding(),),
        attributions=attributions,
    )


def test_an_audit_that_differs_in_nothing_states_the_rates_of_held_back_models(tmp_path: Path) -> None:
    found = stand(tmp_path)
    assert found.differences == ()
    assert found.qualification is not None
    by_name = {rate.name: rate for rate in found.rates}
    assert by_name["true_positive"].value == 1
    assert by_name["true_positive"].n == 3  # of six models, three are held back
    assert "100 %" in found.statement.replace("\u00a0", " ")


def test_an_attribution_left_open_counts_as_what_it_came_to(tmp_path: Path) -> None:
    assert stand(tmp_path, attribution="auto", attributions=("lrp", "lrp")).differences == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop_threshold": 0.4}, "crop_threshold 0.4 instead of 0.01"),
        ({"reference_samples": 20}, "reference_samples 20 instead of 30"),
        ({"attribution": "activation_x_gradient"}, "attribution activation_x_gradient instead of lrp"),
        ({"attribution": "auto", "attributions": ("activation_x_gradient",)}, "attribution activation_x_gradient instead of lrp"),
        (
            {"attribution": "auto", "attributions": ("lrp", "activation_x_gradient")},
            "attribution activation_x_gradient and lrp instead of lrp",
        ),
        ({"foundation": FOUNDATION.model_copy(update={"sha256": "e" * 64, "name": "other"})}, "foundation model other"),
        ({"data_source": "folder"}, "test data are not of a rendered world"),
        ({"samples": 99}, "99 test samples instead of 100"),
        ({"architecture": "torchvision mobilenet_v2"}, "mobilenet_v2 is of no qualified family"),
        ({"architecture": "timm vgg11"}, "vgg11 is of no qualified family"),
        ({"findings": (finding(0.3),)}, "criterion of no-ruler: at most 0.3 instead of 0.2"),
        ({"qualified": qualification(code={**standing.code_digests(), "scores": "0"})}, "code that measures has changed since (scores)"),
    ],
)  # fmt: skip
def test_each_difference_is_named_and_no_rate_is_claimed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = stand(tmp_path, change.pop("qualified", None), **change)
    assert any(words in clause.replace("\u00a0", " ") for clause in found.differences), found.differences
    assert found.rates == ()
    assert "No error rates are claimed" in found.statement
    assert found.qualification is not None


def test_settings_that_change_no_result_are_no_difference(tmp_path: Path) -> None:
    assert stand(tmp_path, batch_size=8).differences == ()
    assert stand(tmp_path, samples=5000).differences == ()
    assert stand(tmp_path, findings=(finding(0.9, "spurious_reliance", ("ruler", "hair")),)).differences == ()


def test_correction_for_multiplicity_is_part_of_what_was_qualified(tmp_path: Path) -> None:
    plan = synthetic.plan()
    other = plan.model_copy(update={"spec": plan.spec.model_copy(update={"multiplicity": "bh"})})
    assert any("multiplicity" in clause for clause in stand(tmp_path, plan=other).differences)


def test_a_setting_younger_than_the_qualification_counts_as_its_default(tmp_path: Path) -> None:
    older = standing.shared_settings(MeasurementSettings())
    del older["probe"]
    assert stand(tmp_path, qualification(settings=older)).differences == ()
    assert stand(tmp_path, qualification(settings=older), probe="cosine_difference").differences


def test_too_few_models_state_no_rates(tmp_path: Path) -> None:
    some = tuple(pair for pair in pairs() if pair.artefact == "hair")
    found = stand(tmp_path, qualification(pairs=some, groups=rates.groups(some)))
    assert "too few" in found.statement


def test_without_any_qualification_the_audit_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(standing, "SHIPPED", tmp_path / "none.json")
    found = standing.standing(
        synthetic.plan(), foundation=FOUNDATION, data_source="phantom", samples=9, architecture="timm resnet18", findings=()
    )
    assert found == StandingRecord(statement=UNQUALIFIED)


@pytest.mark.parametrize(("text", "slug"), [("{}", "invalid-qualification"), ("no", "invalid-qualification"),
                                            ('{"schema_version": "9"}', "qualification-version")])  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, text: str, slug: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(text)
    with pytest.raises((UsageError, IntegrityError)) as caught:
        read_qualification(path)
    assert caught.value.slug == slug
    assert caught.value.problems[0].file == str(path)


def test_a_named_file_that_is_missing_is_an_error_not_a_silence(tmp_path: Path) -> None:
    plan = synthetic.plan()
    audit = plan.audit.model_copy(update={"qualification": str(tmp_path / "none.json")})
    with pytest.raises(UsageError) as caught:
        standing.standing(
            plan.model_copy(update={"audit": audit}), foundation=FOUNDATION, data_source="phantom", samples=9,
            architecture="timm resnet18", findings=(),
        )  # fmt: skip
    assert caught.value.slug == "no-qualification"


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("timm resnet18", "residual"),
        ("code plain.py:network", "plain"),
        ("timm vit_tiny_patch16_224", "transformer"),
        ("torchvision vgg16", "plain"),
        ("torchvision mobilenet_v2", None),
    ],
)
def test_families_by_name(architecture: str, kind: str | None) -> None:
    assert standing.family(architecture) == kind


class TestCode:
    SOURCE = '''"""Docstring."""
import os  # why

def f(x):
    """What it does."""
    text = "# no comment"
    return x + 1, text
'''

    def test_comments_docstrings_and_blank_lines_do_not_count(self) -> None:
        other = (
            self.SOURCE.replace("# why", "").replace("What it does", "Something else").replace("\n\ndef", "\n\n\n# more\ndef")
        )
        assert code(other) == code(self.SOURCE)

    def test_code_and_strings_count(self) -> None:
        assert code(self.SOURCE.replace("x + 1", "x + 2")) != code(self.SOURCE)
        assert code(self.SOURCE.replace("# no comment", "# another")) != code(self.SOURCE)

    def test_every_module_that_decides_is_named(self) -> None:
        names = standing.code_digests()
        assert {"scores", "statistics", "assignment", "behaviour", "checks", "verdict", "attribution", "regions"} <= set(names)
        assert all(len(value) == 16 for value in names.values())


def test_a_qualification_that_cannot_be_read_is_told_before_any_work(tmp_path: Path) -> None:
    plan = synthetic.plan()
    named = {"qualification": str(tmp_path / "none.json"), "store": str(tmp_path / "store.duckdb")}
    with pytest.raises(UsageError) as caught:
        engine.run(plan.model_copy(update={"audit": plan.audit.model_copy(update=named)}), command="semlens-audit run")
    assert caught.value.slug == "no-qualification"
    assert not (tmp_path / "store.duckdb").exists()
