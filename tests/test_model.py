"""`xai.Model` round the caller's own network: every source of pictures, identity, and nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

import xai
from xai.errors import XaiError
from xai.images import load_images
from xai.model import Model, hash_state, pick_device
from xai.panels import Heatmap
from xai.targets import Target

LABELS = ("ant", "bee", "cat", "dog", "eel")


def net() -> nn.Sequential:
    """Conv, batch norm with statistics that matter, dropout: eval and training mode differ. In training mode."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2),
                         nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    made[1].running_mean.normal_()
    made[1].running_var.uniform_(0.5, 2.0)
    nn.init.normal_(made[1].weight)
    return made.train()


def model(module: nn.Module | None = None, **more: Any) -> Model:
    given = {"mean": [0.4, 0.5, 0.6], "std": [0.2], "size": 16, "labels": LABELS} | more
    return Model(net() if module is None else module, **given)


def pixels(n: int = 3) -> Tensor:
    """(n, 3, 16, 16) uint8."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 16, 16), np.uint8))


def normalised(stack: Tensor) -> Tensor:
    """What the model above makes of pictures of its own size."""
    return (stack / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2


class Named(Dataset[tuple[Any, int]]):
    """Pictures with labels, as torchvision's Datasets are."""

    classes = ["dog", "ant", "bee"]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return Pil.fromarray(pixels()[i].permute(1, 2, 0).numpy()), i


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": pixels,
    "float tensor": lambda: pixels() / 255,
    "array": lambda: pixels().permute(0, 2, 3, 1).numpy(),
    "list of PIL pictures": lambda: [Pil.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels()],
    "Dataset": lambda: TensorDataset(pixels(), torch.tensor([3, 1, 4])),
    "Dataset with class names": Named,
    "DataLoader": lambda: DataLoader(TensorDataset(pixels(), torch.tensor([3, 1, 4])), batch_size=2),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_networks_own_scores(source: str) -> None:
    module = net()
    expected = copy.deepcopy(module).eval()(normalised(pixels()))
    batch = next(model(module).prepare(load_images(SOURCES[source]())))
    assert_close(batch.inputs, normalised(pixels()), rtol=1e-5, atol=1e-5)
    assert_close(batch.output(), expected, rtol=1e-4, atol=1e-4)
    assert_close(batch.scores(), expected.softmax(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "names"),
    [("Dataset", ("dog", "bee", "eel")), ("DataLoader", ("dog", "bee", "eel")),
     ("Dataset with class names", ("dog", "ant", "bee"))],
)  # fmt: skip
def test_labels_of_a_dataset_serve_the_target_label(source: str, names: tuple[str, ...]) -> None:
    """By number where the data set has no names, by name where it has."""
    own = model()
    assert next(own.prepare(load_images(SOURCES[source]()))).bind(Target("label")).names == names
    done = xai.explain(own, SOURCES[source](), "gradcam", target="label")
    assert tuple(image.target for image in done.result.images) == names
    with pytest.raises(XaiError, match="target label must be used with pictures whose labels are known"):
        xai.explain(own, pixels(), "gradcam", target="label")


# What is put back


def everything(module: nn.Module) -> list[Any]:
    """What a caller may have set on a network: the state, modes, hooks and gradients."""
    grads = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    hooks = [list(map(len, (m._forward_hooks, m._backward_hooks, m._forward_pre_hooks))) for m in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return [grads, hooks, state, [m.training for m in module.modules()], [id(b) for b in module.buffers()]]


def set_up() -> nn.Sequential:
    """A network with a frozen layer, a gradient, a hook and one part in eval mode."""
    module = net()
    module[0].requires_grad_(False)
    module[1].eval()
    module[7].weight.grad = torch.ones_like(module[7].weight)
    module[2].register_forward_hook(lambda m, i, o: None)
    return module


def meddle(module: nn.Module, fail: bool) -> None:
    """What captum, attacks and optimisers do to a network."""
    module.train()
    module.requires_grad_(True)
    for part in module.modules():
        part.register_forward_hook(lambda m, i, o: None)
        part.register_full_backward_hook(lambda m, i, o: None)
        part.register_forward_pre_hook(lambda m, i: None)
    module.eval()
    module(torch.rand(2, 3, 16, 16, requires_grad=True)).sum().backward()
    module[1].running_mean = torch.zeros(6)  # type: ignore[index]
    if fail:
        raise RuntimeError("stop")


@pytest.mark.parametrize("fail", [False, True])
def test_what_is_done_to_the_opened_network_is_undone(fail: bool) -> None:
    module = set_up()
    own, before = model(module), everything(module)

    def use() -> None:
        with own.opened() as raw:
            assert raw is module
            assert not any(m.training for m in raw.modules())
            meddle(raw, fail)

    if fail:
        with pytest.raises(RuntimeError, match="stop"):
            use()
    else:
        use()
    assert_close(everything(module), before, rtol=0, atol=0)
    assert (own.cost.forwards, own.cost.backwards) == (2, 2)


def test_passes_through_the_opened_network_are_counted_in_pictures() -> None:
    own = model()
    with own.opened() as raw:
        raw(torch.rand(4, 3, 16, 16))
        assert (own.cost.forwards, own.cost.backwards) == (4, 0)
        x = torch.rand(3, 3, 16, 16, requires_grad=True)
        torch.autograd.grad(raw(x)[:, 1].sum(), x)
    assert (own.cost.forwards, own.cost.backwards) == (7, 3)
    assert own._module is not None
    own._module(torch.rand(2, 3, 16, 16))  # closed again: no longer counted
    assert own.cost.forwards == 7


@pytest.mark.parametrize("method", ["gradcam", "guided_backprop", "deeplift", "lrp", "fullgrad", "smoothgrad"])
def test_the_callers_network_is_never_changed(method: str) -> None:
    module = set_up()
    before = everything(module)
    own = model(module)
    xai.explain(own, pixels(), method)
    own.record("auto")
    assert_close(everything(module), before, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float64", "bfloat16", "float16"])
def test_another_precision_leaves_the_callers_network_as_it_was(precision: str) -> None:
    module = set_up()
    before = everything(module)
    own = model(module, precision=precision)
    expected = copy.deepcopy(module).eval()(normalised(pixels()))
    batch = next(own.prepare(load_images(pixels())))
    assert batch.inputs.dtype == own.dtype == getattr(torch, precision)
    loose = 1e-4 if precision == "float64" else 0.05
    assert_close(batch.output().float(), expected, rtol=loose, atol=loose)
    done = xai.explain(own, pixels(), "gradcam").result
    assert done.provenance.precision == precision
    assert all(v.passed for v in done.verdicts if v.name == "finite")
    assert_close(everything(module), before, rtol=0, atol=0)


def test_precision_is_the_networks_own_unless_asked_for() -> None:
    assert model().dtype == torch.float32
    assert model(net().double()).dtype == torch.float64
    assert xai.explain(model(net().double()), pixels(), "gradcam").result.provenance.precision == "float64"
    with pytest.raises(XaiError, match="the precision must be one of float32, float64, bfloat16, float16; got 'int8'"):
        model(precision="int8")


def test_the_fast_form_gives_the_same_output() -> None:
    module = net()
    own = model(module)
    assert own.fast.folded == {"0"}
    assert own.fast.module is not module
    x = torch.randn(4, 3, 16, 16)
    expected = copy.deepcopy(module).eval()(x)
    assert (own(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


class NoCopy(nn.Module):
    """Something that copy.deepcopy refuses, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 5)."""
        out: Tensor = self.net(x)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> NoCopy:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("method", ["gradcam", "saliency", "smoothgrad"])
def test_a_network_that_cannot_be_copied_works_and_is_left_as_it_was(method: str) -> None:
    """In eval mode although the caller's is in training mode: no dropout, no batch statistics, none updated."""
    module, twin = NoCopy(), net().eval()
    before = everything(module)
    own = model(module)
    batch = next(own.prepare(load_images(pixels())))
    assert_close(batch.output(), twin(normalised(pixels())), rtol=1e-5, atol=1e-5)
    maps, like = ([panel.values for panel in xai.explain(one, pixels(), method).result.panels
                   if isinstance(panel, Heatmap)] for one in (own, model()))  # fmt: skip
    assert len(maps) == 3
    assert_close(maps, like, rtol=1e-3, atol=1e-5)
    assert_close(everything(module), before, rtol=0, atol=0)


# Identity and errors


def test_the_hash_of_the_weights_follows_the_weights_alone() -> None:
    module = net()
    before = model(module).weights_hash
    module.requires_grad_(False)
    module.eval()
    assert model(module, labels=None, size=24).weights_hash == before == model().weights_hash
    assert len(before) == 16
    with torch.no_grad():
        module[7].bias[0] += 1e-6
    assert model(module).weights_hash != before
    other = net()
    other[1].running_var[0] *= 2
    assert model(other).weights_hash != before


def test_the_hash_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6, dtype=torch.float32)
    states = [{"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.double()}, {"a": -x}, {"a": x, "c": x[:0]}, {}]
    assert len({hash_state(s) for s in states}) == len(states)
    assert hash_state({"a": x, "b": -x}) == hash_state({"b": -x, "a": x})
    assert hash_state({"a": x.reshape(2, 3).T}) == hash_state({"a": x.reshape(2, 3).T.contiguous()})


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("kind", ["module", "forward"])
def test_class_names_of_the_wrong_number_are_left_out_with_a_note(count: int, kind: str) -> None:
    """Whoever asks first: a target, the record, or the network itself."""
    module = net().eval()
    for ask in ((lambda m: m(torch.rand(1, 3, 16, 16))), (lambda m: m.record()), (lambda m: m.head),
                (lambda m: next(m.prepare(load_images(pixels()))).output())):  # fmt: skip
        own = Model(mean=[0.5], std=[0.5], size=16, labels=[f"n{i}" for i in range(count)],
                    **{"module": module} if kind == "module" else {"forward": module})  # type: ignore[arg-type]
        ask(own)
        assert own.labels is None
        assert own.record().notes == (f"{count} class names were given for 5 classes: the names are left out",)
        assert own.class_name(2) == "class 2"


@pytest.mark.parametrize(("name", "said"), [("gpu", "auto, cpu, cuda or mps; got 'gpu'"), ("cpu:x", "got 'cpu:x'"),
                                            ("", "got ''"), ("cuda:-1", "got 'cuda:-1'")])  # fmt: skip
def test_a_device_that_is_none_is_told(name: str, said: str) -> None:
    with pytest.raises(XaiError, match=f"the device must be .*{said}"):
        model(device=name)


def test_a_device_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(XaiError, match=f"the device must be one that this machine .* have; got {name}. Use"):
            pick_device(name)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_a_model_that_only_runs_says_what_it_cannot_do() -> None:
    own = Model(forward=lambda x: x.mean((2, 3)), mean=[0.5], std=[0.5], size=16)
    assert own.capabilities == {"forward"}
    assert own(torch.ones(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(XaiError, match="the model must be one that gives gradients for this method; got module:fun"):
        xai.explain(own, pixels(), "saliency")
    for ask in (own.opened().__enter__, own.view):
        with pytest.raises(XaiError, match="the model must be one that gives"):
            ask()
    with pytest.raises(XaiError, match="a Model must be made from a module or from a forward callable; got both"):
        Model()


def test_a_failure_inside_the_network_is_one_sentence() -> None:
    with pytest.raises(XaiError, match=r"must be one that module:Sequential can run; got \(1, 3, 16, 16\): mat1"):
        model(nn.Sequential(nn.Flatten(), nn.Linear(7, 5)))(torch.rand(1, 3, 16, 16))
    with pytest.raises(XaiError, match="mean and std must be given together"):
        Model(net(), mean=[0.5])


def test_a_network_built_in_inference_mode_is_refused_with_a_sentence() -> None:
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model = Model(net, mean=[0.5] * 3, std=[0.5] * 3, size=2)
    with pytest.raises(XaiError, match="must be built outside torch.inference_mode"):
        model(model.example())


def test_a_torchscript_network_is_put_back_as_any_other() -> None:
    """Its tables are not dictionaries, though they look like them."""
    scripted = torch.jit.trace(net().eval(), torch.zeros(1, 3, 16, 16)).train()
    before = {name: value.clone() for name, value in scripted.state_dict().items()}
    made, x = model(scripted), torch.rand(2, 3, 16, 16)
    with made.opened() as module:
        assert not module.training
        assert_close(module(x), net().eval()(x))
        norm = module.get_submodule("1")
        norm.running_mean = norm.running_mean + 1
    assert scripted.training
    assert_close(dict(scripted.state_dict()), before, rtol=0, atol=0)
    assert not scripted._forward_hooks
