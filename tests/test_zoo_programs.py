"""Models that are programs: the user's code, torch.export, TorchScript, ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model
from xai.targets import Target
from xai.zoo.loading import load
from xai.zoo.nets.photo20 import photo20

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*treespec")  # about the making of the files
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
NORMAL = "mean=0.5&std=0.25"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return photo20(5).eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in every form of program."""
    folder = tmp_path_factory.mktemp("programs")
    example = torch.zeros(2, 3, 64, 64)
    dynamic = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(dynamic, folder / "dynamic.pt2")
    torch.export.save(torch.export.export(network, (example,)), folder / "fixed.pt2")
    script = torch.jit.script(network)
    script.save(str(folder / "script.ts"))
    torch.jit.freeze(script).save(str(folder / "frozen.pt"))
    torch.jit.trace(network, example).save(str(folder / "traced.torchscript"))
    return folder


def gradient(model: Model) -> Tensor:
    batch = next(model.prepare(load_images(PICTURE)))
    return batch.input_gradient(batch.inputs, batch.bind(Target("class:1")))[1]


@pytest.mark.parametrize("name", ["dynamic.pt2", "fixed.pt2", "script.ts", "frozen.pt", "traced.torchscript"])
def test_a_program_gives_the_networks_outputs_and_gradients(
    name: str, folder: Path, network: nn.Module, inputs: Tensor
) -> None:
    model = load(f"{folder / name}?size=64&{NORMAL}", device="cpu")
    reference = Model(network, size=64, mean=[0.5], std=[0.25], device="cpu")
    assert model.runs_code
    assert {"forward", "gradients"} <= model.capabilities
    torch.testing.assert_close(model(inputs), reference(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(inputs[:1]), reference(inputs[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(model), gradient(reference), rtol=1e-3, atol=1e-5)
    assert model.record().weights_hash == model.weights_hash
    assert len(model.weights_hash) == 16
    with model.opened() as module:
        torch.testing.assert_close(module(inputs), reference(inputs), rtol=1e-4, atol=1e-5)


def test_the_layers_of_an_exported_program_can_be_hooked(folder: Path, network: nn.Module) -> None:
    model = load(f"{folder / 'dynamic.pt2'}?{NORMAL}", device="cpu")
    assert model.preprocessing.size == (64, 64)  # what the export fixed
    assert "hooks" in model.capabilities
    reference = Model(network, size=64, mean=[0.5], std=[0.25], device="cpu")
    ours, theirs = (next(m.prepare(load_images(PICTURE))) for m in (model, reference))
    assert ours.view().grid == theirs.view().grid == (8, 8)
    layer = ours.view().name
    torch.testing.assert_close(ours.activations(layer), theirs.activations(layer), rtol=1e-4, atol=1e-5)
    target = Target("class:1")
    torch.testing.assert_close(
        ours.gradients(layer, ours.bind(target)), theirs.gradients(layer, theirs.bind(target)), rtol=1e-3, atol=1e-6
    )


def test_the_layers_of_an_exported_program_are_real_ones(tmp_path: Path) -> None:
    made = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, (1, 3), padding=(0, 1)), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.LayerNorm(20), nn.Linear(20, 3),
    ).eval()  # fmt: skip
    made[1].running_mean.normal_()
    made[1].running_var.uniform_(0.5, 2)
    example = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(made, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "net.pt2")
    model = load(str(tmp_path / "net.pt2"), device="cpu")
    assert model.preprocessing.channels == 4
    with model.opened() as module, torch.no_grad():
        kinds = [type(module.get_submodule(str(i))) for i in (0, 1, 2, 3, 6, 7)]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.LayerNorm, nn.Linear]
        torch.testing.assert_close(module(example), made(example), rtol=1e-5, atol=1e-6)
        for name, value in made.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fixed.pt2", "script.ts"])
def test_programs_without_layers_say_so(name: str, folder: Path) -> None:
    model = load(f"{folder / name}?size=64&{NORMAL}", device="cpu")
    assert model.capabilities == {"forward", "gradients"}
    assert any("layers cannot be reached" in note for note in model.notes)
    with pytest.raises(XaiError, match="access to its layers"):
        model.view()


def test_a_program_without_preprocessing_asks_for_it(folder: Path) -> None:
    model = load(str(folder / "dynamic.pt2"), device="cpu")
    with pytest.raises(XaiError, match=r"\?size=224&range=0-1&mean="):
        next(model.prepare(load_images(PICTURE)))


def test_programs_that_cannot_be_loaded(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(XaiError, match="which carries its own"):
        load(str(folder / "script.ts"), weights="random")
    with pytest.raises(XaiError, match="a file that exists"):
        load(str(tmp_path / "none.pt2"))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(XaiError, match=r"--weights .*state\.pt"):
        load(str(tmp_path / "state.pt"))
    (tmp_path / "empty.pt2").write_bytes(b"")
    with pytest.raises(XaiError, match="the empty file"):
        load(str(tmp_path / "empty.pt2"))
    whole = (folder / "dynamic.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(XaiError, match="which is neither"):
        load(str(tmp_path / "cut.pt2"))
    for name, what in (("script.ts", "TorchScript program"), ("dynamic.pt2", "exported program")):
        with pytest.raises(XaiError, match=f"the {what} .*--model"):
            load("photo20", weights=str(folder / name))


def test_a_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training).mean((2, 3))

    program = torch.export.export(Dropped().train(), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(XaiError, match="exported in eval mode.*dropout in training mode"):
        load(str(tmp_path / "net.pt2"))


def test_a_program_with_two_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y).mean((2, 3))

    program = torch.export.export(Two(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(XaiError, match="one batch of pictures"):
        load(str(tmp_path / "net.pt2"))


# --- the user's own code ---
CODE = """
import torch
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.fc = nn.Linear(WIDTH, 2)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

def make():
    return Net()

def whole():
    from xai.model import Model
    return Model(Net(), mean=[0.1], std=[0.2], size=16, channels=1, labels=["no", "yes"])

def broken():
    raise ValueError("no disk today")

def number():
    return 3

ready = Net()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    (tmp_path / "my net.py").write_text(CODE)
    return tmp_path / "my net.py"


def test_own_code_makes_the_network(code: Path) -> None:
    path = list(sys.path)
    for name in ("make", "Net", "ready"):
        model = load(f"file:{code}:{name}?size=16&{NORMAL}", device="cpu")
        assert model.runs_code
        assert model.preprocessing.channels == 1
        assert model(model.example()).shape == (1, 2)
        assert any("sha256" in note for note in model.notes)
    assert sys.path == path
    one, two = (load(f"file:{code}:make?size=16&{NORMAL}", device="cpu") for _ in range(2))
    assert one.weights_hash == two.weights_hash  # made under the seed


def test_own_code_with_weights(code: Path, tmp_path: Path) -> None:
    first = load(f"file:{code}:make", weights="random", device="cpu", seed=4)
    assert first.random_weights
    assert first.weights_hash != load(f"file:{code}:make", weights="random", device="cpu", seed=5).weights_hash
    with first.opened() as module:
        torch.save(module.state_dict(), tmp_path / "net.pt")
    again = load(f"file:{code}:ready", weights=str(tmp_path / "net.pt"), device="cpu")
    assert again.weights_hash == first.weights_hash
    assert not again.random_weights


def test_own_code_may_return_a_model(code: Path, tmp_path: Path) -> None:
    model = load(f"file:{code}:whole?mean=0.4&std=0.5&size=24")
    assert model.labels == ("no", "yes")
    assert (model.preprocessing.mean, model.preprocessing.size) == ((0.4,), (24, 24))
    assert model.runs_code
    assert model.spec == f"file:{code}:whole?size=24&mean=0.4&std=0.5"
    with pytest.raises(XaiError, match="returns a finished xai.Model"):
        load(f"file:{code}:whole", weights="random")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mkae", "Did you mean make"),
        ("broken", r"ValueError: no disk today \(my net.py, line 22\)"),
        ("number", "a torch.nn.Module or an xai.Model; got int"),
        ("make?classes=3", "The code decides how many"),
    ],
)
def test_own_code_that_fails(name: str, sentence: str, code: Path) -> None:
    with pytest.raises(XaiError, match=sentence):
        load(f"file:{code}:{name}")


def test_own_files_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(XaiError, match=r"ModuleNotFoundError.*bad\.py, line 1"):
        load(f"file:{tmp_path / 'bad.py'}:make")
    with pytest.raises(XaiError, match="a Python file that exists"):
        load(f"file:{tmp_path / 'none.py'}:make")
    with pytest.raises(XaiError, match="Add :NAME"):
        load("file:net.py")
    with pytest.raises(XaiError, match="No module named 'no_such_package_at_all'"):
        load("py:no_such_package_at_all:make")


def test_installed_code(network: nn.Module) -> None:
    model = load(f"py:xai.zoo.nets.photo20:photo20?size=64&{NORMAL}", device="cpu")
    assert model.spec == f"py:xai.zoo.nets.photo20:photo20?size=64&{NORMAL}"
    assert model(model.example()).shape == (1, 20)
    assert model.runs_code


# --- ONNX ---
def onnx_file(path: Path, batch: int | str, half: bool = False, ending: str = "") -> dict[str, np.ndarray]:
    """A convolution, a mean, a linear layer: 3 channels, 32x32, to 5 classes."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    held = {"W": rng.normal(size=(4, 3, 3, 3)), "F": rng.normal(size=(4, 5)) * 0.1}
    held = {name: value.astype(np.float16 if half else np.float32) for name, value in held.items()}
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "F"], ["scores"]),
    ]
    outputs = ["scores"]
    if ending:
        nodes.append(helper.make_node(ending, ["scores"], ["answer"], **({"axis": 1} if ending == "Softmax" else {})))
        outputs = ["answer"]
    values = [helper.make_tensor_value_info(name, kind, [batch, 5]) for name in outputs]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", kind, [batch, 3, 32, 32])], values,
        [onnx.numpy_helper.from_array(value, name) for name, value in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return held


def by_hand(held: dict[str, np.ndarray], inputs: Tensor) -> Tensor:
    weight, last = (torch.from_numpy(held[name]).float() for name in ("W", "F"))
    return nn.functional.conv2d(inputs, weight, padding=1).relu().mean((2, 3)) @ last


@pytest.mark.parametrize(("batch", "half"), [("n", False), (1, False), (3, False), (1, True)])
def test_onnx_gives_what_its_formula_says(batch: int | str, half: bool, tmp_path: Path, inputs: Tensor) -> None:
    held = onnx_file(tmp_path / "net.onnx", batch, half)
    model = load(f"{tmp_path / 'net.onnx'}?mean=0.5&std=0.25", device="cpu")
    assert model.preprocessing.size == (32, 32)
    assert model.capabilities == {"forward"}
    small = inputs[:, :, :32, :32]
    tolerance = 2e-2 if half else 1e-5
    torch.testing.assert_close(model(small), by_hand(held, small), rtol=tolerance, atol=tolerance)
    batches = list(model.prepare(load_images(PICTURE)))
    assert batches[0].scores().shape == (1, 5)
    with pytest.raises(XaiError, match="gradients"):
        batches[0].gradients("auto", batches[0].bind(Target("top1")))
    assert model.record().weights_hash == model.weights_hash


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid"])
def test_onnx_probabilities_become_logits(ending: str, tmp_path: Path, inputs: Tensor) -> None:
    held = onnx_file(tmp_path / "net.onnx", "n", ending=ending)
    model = load(f"{tmp_path / 'net.onnx'}?{NORMAL}", device="cpu")
    assert any(ending in note for note in model.notes)
    logits = by_hand(held, inputs[:, :, :32, :32])
    ours = model(inputs[:, :, :32, :32])
    if ending == "Softmax":
        torch.testing.assert_close(ours.softmax(1), logits.softmax(1), rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(ours, logits, rtol=1e-3, atol=1e-4)
        assert model.head.kind == "multi-label"


def test_onnx_files_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(XaiError, match="an ONNX file that onnxruntime can run"):
        load(str(tmp_path / "bad.onnx"))
    onnx_file(tmp_path / "net.onnx", "n")
    model = load(f"{tmp_path / 'net.onnx'}?size=16&{NORMAL}", device="cpu")
    with pytest.raises(XaiError, match="one that the ONNX model can run"):
        model(model.example())
    with pytest.raises(XaiError, match="which carries its own"):
        load(str(tmp_path / "net.onnx"), weights="random")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(XaiError, match=r"xai-toolkit\[onnx\]"):
        load(str(tmp_path / "net.onnx"))
