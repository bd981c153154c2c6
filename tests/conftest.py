"""What several test modules need: real data where it lies, small plans, small image folders, small networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from semlens_audit.plan import (
    Audit,
    AuditPlan,
    Check,
    ClassSpec,
    Concept,
    Criterion,
    Data,
    ModelSource,
    Preprocessing,
    Spec,
    Subject,
)

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests import distribution

    return distribution.scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests import distribution

        distribution.order(items)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real test data; skips where it is not on this machine."""
    path = Path(os.environ.get("SEMLENS_AUDIT_TESTDATA") or ROOT.parent / "shared" / "data")
    if not (path / "models").is_dir():
        pytest.skip(f"real test data is not on this machine ({path}); set SEMLENS_AUDIT_TESTDATA")
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of small networks, which lose more by waiting for a second thread than they gain."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PlanFactory = Callable[..., AuditPlan]


@pytest.fixture
def plan_of(tmp_path: Path) -> PlanFactory:
    """Make a plan whose audit file lies in the test's own folder; keywords replace parts of it."""

    def make(**parts: Any) -> AuditPlan:
        spec = Spec.model_validate(
            {
                "spec": "test",
                "version": "1",
                "title": "A spec",
                "purpose": "testing",
                "classes": {"a": ClassSpec()},
                "concepts": parts.pop("concepts", (Concept(id="ruler", role="spurious", descriptions=("a ruler",)),)),
                "checks": (
                    Check.model_validate(
                        {
                            "id": "c",
                            "kind": "spurious_reliance",
                            "class": "a",
                            "statement": "s",
                            "criterion": Criterion(at_most=0.1),
                            "rationale": "r",
                        }
                    ),
                ),
            }
        )
        subject = Subject(
            name="subject",
            model=parts.pop("model", ModelSource(source="torchvision", name="resnet18")),
            preprocessing=parts.pop("preprocessing", Preprocessing(size=32)),
            classes=parts.pop("classes", ("a", "b")),
            class_map=parts.pop("class_map", {}),
        )
        audit = Audit(
            audit="test",
            title="An audit",
            spec="spec.yaml",
            subject=subject,
            layers=parts.pop("layers", ("layer4",)),
            data=parts.pop("data", Data(source="folder", path="images")),
            store="store/{audit}.duckdb",
            **parts,
        )
        return AuditPlan(
            spec=spec,
            audit=audit,
            spec_file=str(tmp_path / "spec.yaml"),
            audit_file=str(tmp_path / "audit.yaml"),
            spec_digest="0" * 64,
            audit_digest="0" * 64,
        )

    return make


def noise_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An RGB image that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """``images/a`` and ``images/b`` with three PNG files each."""
    root = tmp_path / "images"
    for place, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            noise_image(10 * place + i).save(root / name / f"{i}.png")
    return root
