from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semlens_audit import foundation
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.foundation import BATCH, TEXT_BATCH, Foundation, foundation_digest, load_foundation
from tests.unit import index_world as world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foundation")
    world.write_clip(path / "clip")
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Foundation:
    return load_foundation(plan(folder))


def plan(folder: Path, **model: Any):
    return world.plan(folder, world.audit(foundation_model={"source": "open_clip", "name": "clip"} | model))


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (20 + i % 30, 20 + i % 7, 3), dtype=np.uint8)) for i in range(count)]


def timm_model(folder: Path, **changes: Any):
    weights = folder / "encoder.safetensors"
    if not weights.exists():
        world.write_subject(weights, seed=4)
    values = {
        "source": "timm",
        "name": "resnet18",
        "weights": weights.name,
        "arguments": {"channels": list(world.CHANNELS), "num_classes": 2},
        "preprocessing": {"resize": 36, "size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    return plan(folder, **(values | changes))


class TestEmbedding:
    def test_is_what_open_clip_gives(self, folder: Path, loaded: Foundation) -> None:
        import open_clip
        import torch

        model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'clip'}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'clip'}")
        images, texts = pictures(5), ["a ruler", "hair", ""]
        with torch.inference_mode():
            wanted = [model.eval().encode_image(prepare(image)[None], normalize=True)[0].numpy() for image in images]
            spoken = [model.encode_text(tokenizer([text]), normalize=True)[0].numpy() for text in texts]
        np.testing.assert_allclose(loaded.embed_images(images), wanted, atol=2e-6)
        np.testing.assert_allclose(loaded.embed_texts(texts), spoken, atol=2e-6)

    def test_has_unit_length_and_says_its_dimension(self, loaded: Foundation) -> None:
        found = loaded.embed_images(pictures(3))
        assert found.dtype == np.float32
        assert found.shape == (3, loaded.dimension) == (3, 16)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)

    def test_does_not_depend_on_its_company(self, loaded: Foundation) -> None:
        images = pictures(BATCH + 9)
        together = loaded.embed_images(images)
        np.testing.assert_array_equal(together[::-1], loaded.embed_images(images[::-1]))
        np.testing.assert_array_equal(together[:1], loaded.embed_images(images[:1]))
        texts = [f"text {i}" for i in range(TEXT_BATCH + 3)]
        np.testing.assert_array_equal(loaded.embed_texts(texts)[-1:], loaded.embed_texts(texts[-1:]))

    def test_of_nothing_is_empty(self, loaded: Foundation) -> None:
        assert loaded.embed_images([]).shape == (0, 16)
        assert loaded.embed_texts([]).shape == (0, 16)

    def test_half_precision_weights_are_computed_with_in_single(self, loaded: Foundation) -> None:
        assert loaded.precision == "fp32"
        assert loaded.embed_prepared([loaded.prepare(pictures(1)[0])]).dtype == np.float32

    def test_nan_is_an_error_that_names_the_model(self, loaded: Foundation) -> None:
        broken = Foundation("bad-one", "0", lambda batch: batch.flatten(1) * float("nan"), loaded.prepare, None, 16)
        with pytest.raises(ExecutionError, match="bad-one"):
            broken.embed_images(pictures(1))
        zero = Foundation("zero-one", "0", lambda batch: batch.flatten(1) * 0.0, loaded.prepare, None, 16)
        with pytest.raises(ExecutionError, match="zero-one"):
            zero.embed_images(pictures(1))


class TestPrecision:
    def test_bfloat16_only_where_it_gives_the_same(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        model, images = load_foundation(plan(folder)), pictures(20)
        single = model.embed_images(images)
        least = model.choose_precision(images)
        assert model.precision == "bf16"
        half = model.embed_images(images)
        assert not np.array_equal(single, half)
        assert least == pytest.approx(float((single * half).sum(axis=1).min()), abs=1e-5)
        assert least >= foundation.SAME
        monkeypatch.setattr(foundation, "SAME", 1.5)
        assert model.choose_precision(images) == pytest.approx(least, abs=1e-6)
        assert model.precision == "fp32"
        np.testing.assert_array_equal(model.embed_images(images), single)

    def test_is_not_tried_where_it_would_be_emulated(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        model = load_foundation(plan(folder))
        assert model.choose_precision(pictures(2)) is None
        assert model.precision == "fp32"


class TestImageOnly:
    def test_gives_the_features_before_the_head(self, folder: Path) -> None:
        import timm
        import torch
        from safetensors.torch import load_file

        from semlens_audit.subject import make_view, normalise

        audit = timm_model(folder)
        model = load_foundation(audit)
        assert not model.has_text
        assert not foundation.has_text_tower(audit)
        assert model.dimension == world.CHANNELS[-1]
        reference = timm.create_model("resnet18", channels=world.CHANNELS, num_classes=2)
        reference.load_state_dict(load_file(folder / "encoder.safetensors"))
        reference.reset_classifier(0)
        settings = audit.audit.foundation_model.preprocessing
        assert settings is not None
        image = pictures(1)[0]
        with torch.inference_mode():
            wanted = reference.eval()(normalise(make_view(image, settings), settings)[None])[0].numpy()
        np.testing.assert_allclose(model.embed_images([image])[0], wanted / np.linalg.norm(wanted), atol=1e-5)

    def test_refuses_text_and_says_what_to_do(self, folder: Path) -> None:
        with pytest.raises(SubjectError) as caught:
            load_foundation(timm_model(folder)).embed_texts(["a ruler"])
        assert caught.value.slug == "no-text-tower"

    def test_needs_weights(self, folder: Path) -> None:
        with pytest.raises(SubjectError) as caught:
            load_foundation(timm_model(folder, weights=None))
        assert caught.value.slug == "missing-weights"

    def test_digest_sees_preprocessing_and_arguments(self, folder: Path) -> None:
        digests = {
            foundation_digest(timm_model(folder)),
            foundation_digest(timm_model(folder, preprocessing={"size": 32})),
            foundation_digest(timm_model(folder, arguments={"channels": [4, 8, 6, 8]})),
        }
        assert len(digests) == 3


class TestDigest:
    def test_another_checkpoint_of_the_same_name_is_another_model(self, tmp_path: Path) -> None:
        """semanticlens 0.2.1 keys its cache by names, so another CLIP checkpoint silently reuses stale results."""
        world.write_clip(tmp_path / "clip", seed=0)
        first = foundation_digest(plan(tmp_path))
        assert foundation_digest(plan(tmp_path)) == first
        world.write_clip(tmp_path / "clip", seed=1)
        assert foundation_digest(plan(tmp_path)) != first

    def test_changed_configuration_is_another_model_and_a_model_card_is_not(self, tmp_path: Path) -> None:
        world.write_clip(tmp_path / "clip")
        first = foundation_digest(plan(tmp_path))
        (tmp_path / "clip" / "README.md").write_text("A card.")
        assert foundation_digest(plan(tmp_path)) == first
        config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
        config["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
        (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(config))
        assert foundation_digest(plan(tmp_path)) != first

    def test_is_the_same_wherever_the_folder_lies(self, tmp_path: Path) -> None:
        world.write_clip(tmp_path / "a" / "clip")
        world.write_clip(tmp_path / "b" / "clip")
        assert foundation_digest(plan(tmp_path / "a")) == foundation_digest(plan(tmp_path / "b"))

    def test_needs_no_torch(self) -> None:
        code = "import sys; from semlens_audit import foundation; print({'torch', 'open_clip', 'timm'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


class TestRefusals:
    def refuse(self, folder: Path, **model: Any) -> SubjectError:
        with pytest.raises(SubjectError) as caught:
            load_foundation(plan(folder, **model))
        assert caught.value.problems[0].hint
        return caught.value

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        assert self.refuse(tmp_path).slug == "missing-foundation-model"

    def test_a_folder_without_configuration(self, tmp_path: Path) -> None:
        (tmp_path / "clip").mkdir()
        assert self.refuse(tmp_path).slug == "bad-foundation-model"

    def test_a_folder_without_weights_is_not_loaded_at_random(self, tmp_path: Path) -> None:
        world.write_clip(tmp_path / "clip")
        (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
        assert self.refuse(tmp_path).slug == "missing-weights"

    @pytest.mark.parametrize("config", ["{", "[]", '{"model": 1}'])
    def test_a_configuration_that_is_none(self, tmp_path: Path, config: str) -> None:
        world.write_clip(tmp_path / "clip")
        (tmp_path / "clip" / "open_clip_config.json").write_text(config)
        assert self.refuse(tmp_path).slug == "bad-foundation-model"

    def test_weights_of_another_architecture(self, tmp_path: Path) -> None:
        world.write_clip(tmp_path / "clip")
        config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
        config["model_cfg"]["vision_cfg"]["width"] = 48
        (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(config))
        error = self.refuse(tmp_path)
        assert error.slug == "bad-foundation-model"
        assert "mismatch" in str(error)

    def test_a_damaged_weights_file(self, tmp_path: Path) -> None:
        world.write_clip(tmp_path / "clip")
        weights = tmp_path / "clip" / "open_clip_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert self.refuse(tmp_path).slug == "bad-foundation-model"

    def test_an_architecture_that_open_clip_does_not_know(self, tmp_path: Path) -> None:
        world.write_subject(tmp_path / "w.safetensors")
        assert self.refuse(tmp_path, name="ViT-Z-99", weights="w.safetensors").slug == "bad-foundation-model"
