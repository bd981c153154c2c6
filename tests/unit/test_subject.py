from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import semlens_audit._torchvision  # noqa: F401
from semlens_audit.errors import ExecutionError, SubjectError, UsageError
from semlens_audit.networks import build
from semlens_audit.plan import ModelSource, Preprocessing
from semlens_audit.subject import load_subject, make_view, normalise, subject_digest
from semlens_audit.weights import state_digest

# isort: split
import timm
from torchvision.transforms import v2

CHANNELS = (8, 8, 8, 8)


def small(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", channels=CHANNELS, num_classes=2, **arguments)


def source(weights: str | None = "w.safetensors", **parts: object) -> ModelSource:
    values = {"source": "timm", "name": "resnet18", "arguments": {"channels": CHANNELS, "num_classes": 2}, "weights": weights}
    return ModelSource.model_validate({**values, **parts})


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    state = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    return state


def test_loads_safetensors_into_eval_single_precision(plan_of, weights):
    subject = load_subject(plan_of(model=source()))
    assert not subject.model.training
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert subject.classes == ("a", "b")
    assert subject.architecture == "timm resnet18"
    assert subject.parameters == sum(parameter.numel() for parameter in small().parameters())


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_loads_torch_state_dict(plan_of, weights, tmp_path, wrapped):
    torch.save({wrapped: weights, "epoch": 3} if wrapped else weights, tmp_path / "w.pt")
    one = load_subject(plan_of(model=source("w.pt")))
    assert one.sha256 == load_subject(plan_of(model=source())).sha256


def test_prefix_of_data_parallel_is_dropped(plan_of, weights, tmp_path):
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "w.pth")
    assert load_subject(plan_of(model=source("w.pth"))).sha256 == load_subject(plan_of(model=source())).sha256


def test_half_precision_file_loads_into_single_precision(plan_of, weights, tmp_path):
    save_file({name: t.half() if t.is_floating_point() else t for name, t in weights.items()}, tmp_path / "half.safetensors")
    model = load_subject(plan_of(model=source("half.safetensors"))).model
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.allclose(model.conv1.weight, weights["conv1.weight"], atol=1e-3)


def test_folder_with_one_weights_file(plan_of, weights, tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    (tmp_path / "w.safetensors").rename(folder / "model.safetensors")
    (folder / "README.md").write_text("card")
    load_subject(plan_of(model=source("released")))
    (folder / "second.pt").write_bytes(b"")
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source("released")))
    assert caught.value.slug == "missing-weights"


def test_weights_that_do_not_fit_name_the_first_tensors(plan_of, weights, tmp_path):
    state = dict(weights)
    del state["conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(3, 8)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source()))
    assert caught.value.slug == "weights-do-not-fit"
    for word in ("1 missing (conv1.weight)", "1 unexpected (extra.weight)", "fc.weight (3, 8) instead of (2, 8)"):
        assert word in str(caught.value)


def test_weights_with_nan_are_refused(plan_of, weights, tmp_path):
    weights["fc.bias"][0] = float("nan")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(SubjectError, match=r"fc\.bias") as caught:
        load_subject(plan_of(model=source()))
    assert caught.value.slug == "weights-not-finite"


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/semlens-pwned"),))


def test_pickle_is_never_executed(plan_of, weights, tmp_path):
    torch.save({"model": Evil()}, tmp_path / "w.pt")
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source("w.pt")))
    assert caught.value.slug == "unsafe-weights"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source("w.pkl")))
    assert caught.value.slug == "unsafe-weights"
    assert not Path("/tmp/semlens-pwned").exists()


@pytest.mark.parametrize(
    ("content", "slug"), [(None, "missing-weights"), (b"broken", "unreadable-weights"), (b"", "unreadable-weights")]
)
def test_missing_or_damaged_weights(plan_of, tmp_path, content, slug):
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source()))
    assert caught.value.slug == slug


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), "is quantised"),
        (lambda: torch.eye(3).to_sparse(), "is sparse (sparse_coo)"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse (sparse_csr)"),
        (lambda: torch.empty((2, 3), device="meta"), "has no data"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_numbers_are_refused_by_name(plan_of, tmp_path, tensor, what):
    torch.save({"layer1.0.weight": tensor(), "fine": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source("w.pt")))
    assert caught.value.slug == "unsupported-weights"
    assert "'layer1.0.weight'" in str(caught.value)
    assert what in str(caught.value)


def test_weights_are_needed(plan_of):
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source(None)))
    assert caught.value.slug == "missing-weights"


@pytest.mark.parametrize(
    ("library", "name", "near"), [("timm", "resnett18", "resnet18"), ("torchvision", "mobilenetv2", "mobilenet_v2")]
)
def test_unknown_architecture_suggests_the_nearest(plan_of, library, name, near):
    with pytest.raises(SubjectError, match=near) as caught:
        load_subject(plan_of(model=ModelSource(source=library, name=name, weights="w.pt")))
    assert caught.value.slug == "unknown-architecture"


def test_wrong_arguments(plan_of):
    with pytest.raises(SubjectError, match="no_such") as caught:
        load_subject(plan_of(model=source(arguments={"no_such": 1})))
    assert caught.value.slug == "bad-arguments"


def test_an_open_clip_architecture_needs_weights(plan_of):
    with pytest.raises(SubjectError, match="together with `weights`") as caught:
        load_subject(plan_of(model=ModelSource(source="open_clip", name="ViT-B-32")))
    assert caught.value.slug == "missing-model-directory"


def test_unknown_layer_suggests_the_nearest(plan_of, weights):
    with pytest.raises(SubjectError, match=r"layer3") as caught:
        load_subject(plan_of(model=source(), layers=("layer4", "layr3")))
    assert caught.value.slug == "unknown-layer"
    subject = load_subject(plan_of(model=source()))
    assert subject.layer("layer4.1.conv2") is subject.model.layer4[1].conv2
    with pytest.raises(SubjectError):
        subject.layer("")


def test_outputs_must_match_the_classes(plan_of, weights):
    with pytest.raises(SubjectError, match="2 outputs, the audit names 3") as caught:
        load_subject(plan_of(model=source(), classes=("a", "b", "c")))
    assert caught.value.slug == "classes-do-not-fit"


def test_crop_may_not_exceed_the_resized_side(plan_of, weights):
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=source(), preprocessing=Preprocessing(resize=32, size=64)))
    assert caught.value.slug == "crop-larger-than-resize"


OWN = """
import torch
from neighbour import WIDTH

def make(bias=0.0, outputs=2):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, WIDTH, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), torch.nn.Linear(WIDTH, outputs))
    torch.nn.init.constant_(net[4].bias, bias)
    return net

def tuple_output():
    class Net(torch.nn.Module):
        def forward(self, x):
            return (x.mean((2, 3))[:, :2],)
    return Net()

def number():
    return 3

class Crash(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("needs 64 pixels")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    return tmp_path / "net.py"


def test_own_code_needs_permission(plan_of, own):
    plan = plan_of(model=ModelSource(source="code", name="net.py:make"), layers=("0",))
    with pytest.raises(UsageError, match="--allow-code") as caught:
        load_subject(plan)
    assert caught.value.slug == "code-not-allowed"
    subject = load_subject(plan, allow_code=True)
    assert subject.architecture == "code net.py:make"
    assert str(own.parent) not in sys.path


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("net.py:mke", "bad-code"),
        ("net.py:number", "bad-code"),
        ("gone.py:make", "bad-code"),
        ("net.py", "bad-code"),
        ("net.py:tuple_output", "not-a-classifier"),
        ("net.py:Crash", "model-fails"),
        ("broken.py:make", "bad-code"),
    ],
)
def test_own_code_that_does_not_do(plan_of, own, tmp_path, name, slug):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(SubjectError) as caught:
        load_subject(plan_of(model=ModelSource(source="code", name=name), layers=("0",)), allow_code=True)
    assert caught.value.slug == slug


@pytest.mark.parametrize(
    ("code", "place"),
    [("x = 1\n1 / 0\n", ":2"), ("x = 1\ndef make(:\n", ":2:10"), ("import neighbour\nneighbour.WITDH\n", ":2")],
)
def test_own_code_that_cannot_be_imported_gives_its_line(own, tmp_path, monkeypatch, code, place):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    for file in (Path("broken.py"), tmp_path / "broken.py"):
        with pytest.raises(SubjectError) as caught:
            build(ModelSource(source="code", name="broken.py:make"), code_file=file, allow_code=True)
        assert caught.value.problems[0].where == f"{file}{place}"


def test_own_code_may_import_torchvision_before_anything_else_did(tmp_path):
    (tmp_path / "net.py").write_text("import torchvision\n\ndef make():\n    return torchvision.models.alexnet(num_classes=2)\n")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from semlens_audit.networks import build\n"
        "from semlens_audit.plan import ModelSource\n"
        "assert 'torchvision' not in sys.modules\n"
        "source = ModelSource(source='code', name='net.py:make')\n"
        f"build(source, code_file=Path({str(tmp_path / 'net.py')!r}), allow_code=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_model_that_outputs_nan(plan_of, own):
    source = ModelSource(source="code", name="net.py:make", arguments={"bias": float("nan")})
    with pytest.raises(ExecutionError, match="NaN") as caught:
        load_subject(plan_of(model=source, layers=("0",)), allow_code=True)
    assert caught.value.slug == "not-finite"


# ---- digests


def test_subject_digest_follows_the_content(plan_of, weights, own, tmp_path):
    plan = plan_of(model=source())
    first = subject_digest(plan)
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes())
    assert subject_digest(plan_of(model=source("copy.safetensors"))) == first
    weights["fc.bias"] += 1
    save_file(weights, tmp_path / "w.safetensors")
    assert subject_digest(plan) != first  # a retrained model under the same name
    assert subject_digest(plan_of(model=source("copy.safetensors", arguments={"num_classes": 2}))) != first
    code = plan_of(model=ModelSource(source="code", name="net.py:make"))
    before = subject_digest(code)
    own.write_text(OWN + "\n# changed\n")
    assert subject_digest(code) != before


def test_subject_digest_imports_no_torch(plan_of, weights, tmp_path):
    (tmp_path / "plan.json").write_text(plan_of(model=source()).model_dump_json(by_alias=True))
    code = (
        "import sys; from semlens_audit.plan import AuditPlan; from semlens_audit.subject import subject_digest; "
        f"subject_digest(AuditPlan.model_validate_json(open({str(tmp_path / 'plan.json')!r}).read())); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_state_digest_sees_names_values_shapes_and_types():
    model = torch.nn.Linear(2, 3)
    first = state_digest(model)
    assert state_digest(model) == first
    assert state_digest(torch.nn.Sequential(model)) != first
    assert state_digest(model.double()) != first
    model.float()
    with torch.no_grad():
        model.bias[0] += 1
    assert state_digest(model) != first


# ---- preprocessing


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (57, 91), (64, 64), (33, 500)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_view_equals_torchvision(size, how):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    view = make_view(image, Preprocessing(resize=48, size=40, interpolation=how))
    mode = v2.InterpolationMode.BILINEAR if how == "bilinear" else v2.InterpolationMode.BICUBIC
    expected = v2.CenterCrop(40)(v2.Resize(48, interpolation=mode, antialias=True)(image))
    assert np.array_equal(np.asarray(view), np.asarray(expected))
    straight = make_view(image, Preprocessing(size=40, interpolation=how))
    assert np.array_equal(np.asarray(straight), np.asarray(v2.Resize((40, 40), interpolation=mode, antialias=True)(image)))


def test_transform_is_the_normalised_view(plan_of, weights):
    preprocessing = Preprocessing(resize=48, size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    subject = load_subject(plan_of(model=source(), preprocessing=preprocessing))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    tensor = subject.transform(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 32, 32)
    assert torch.equal(tensor, normalise(subject.view(image), preprocessing))
    pixel = np.asarray(subject.view(image))[5, 7] / 255
    assert np.allclose(tensor[:, 5, 7], (pixel - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7], atol=1e-6)


# ---- real models


@pytest.mark.parametrize(
    ("library", "name", "arguments", "file", "size"),
    [
        ("torchvision", "mobilenet_v2", {"num_classes": 7}, "mobilenet_v2_ham10000", 7),
        ("timm", "mobilenetv2_100", {"pad_type": "same", "num_classes": 1000}, "mobilenetv2_100_tf", 1000),
    ],
)
def test_real_weights_load_strictly(plan_of, shared_data, library, name, arguments, file, size):
    weights = str(shared_data / "models" / f"{file}.safetensors")
    plan = plan_of(
        model=ModelSource(source=library, name=name, weights=weights, arguments=arguments),
        classes=tuple(f"class {i}" for i in range(size)),
        layers=("features.18",) if library == "torchvision" else ("bn2",),
        preprocessing=Preprocessing(size=224),
    )
    assert load_subject(plan).parameters > 2_000_000
