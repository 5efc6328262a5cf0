"""What is compared: this project's methods and the same ones of its peers, on the same weights and pictures."""

from __future__ import annotations

from typing import Any

import torch
from interleave import Arm
from torch import Tensor, nn

from xai import catalog
from xai.batch import Batch
from xai.images import load_images
from xai.linear import Linear
from xai.model import Model
from xai.targets import Target
from xai.torchvision_import import ensure_torchvision

SEVEN = ("gradcam", "gradcam_plusplus", "hirescam", "xgradcam", "layercam", "eigencam", "finercam")
LAYERS = {"squeezenet1_0": "features.12"}  # of the others layer4
STEPS = 16  # of integrated gradients
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Case:
    """A torchvision network with seeded random weights and a batch of seeded noise, for every arm the same."""

    def __init__(self, net: str, count: int, size: int) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = getattr(ensure_torchvision().models, net)().eval()
        self.layer = LAYERS.get(net, "layer4")
        self.model = Model(self.net, mean=MEAN, std=STD, size=size, layer=self.layer)
        self.images = list(load_images(torch.rand(count, 3, size, size)))
        self._prepared = [self.model.preprocessing(image) for image in self.images]
        self.inputs: Tensor = self.batch().inputs
        self.classes: list[int] = self.model(self.inputs).argmax(1).tolist()  # which also folds the weights

    def batch(self) -> Batch:
        """A prepared batch whose forward has not run."""
        return Batch(self.model, self.images, self._prepared)

    def ours(self, name: str, *methods: str, **fields: Any) -> Arm:
        """The raw maps of several methods on one fresh batch."""
        made: list[Any] = [catalog.find(method)(**fields) for method in methods]

        def run(batch: Batch) -> list[Tensor]:
            for method in made:
                batch.want(*method.layers())  # as `xai explain` does, before the forward
            bound = batch.bind(Target("top1"))
            return [method.maps(batch, bound).values for method in made]

        return Arm(name, run, self.batch)

    def forward(self, _: object = None) -> Tensor:
        """The plain eager forward."""
        with torch.no_grad():
            output: Tensor = self.net(self.inputs)
        return output


def cams(case: Case) -> list[Arm]:
    """The plain forward, Grad-CAM here and in three peers, and all seven CAMs together."""
    import pytorch_grad_cam
    import torchcam.methods
    from captum.attr import LayerGradCam

    layer = case.net.get_submodule(case.layer)
    captum = LayerGradCam(case.net, layer)

    def with_grad_cam(extractor: Any) -> object:
        found = extractor(input_tensor=case.inputs, targets=None)
        extractor.activations_and_grads.release()  # its hooks must not run in the other arms
        return found

    def with_torchcam(_: object) -> object:
        with torchcam.methods.GradCAM(case.net, target_layer=case.layer) as extractor:
            scores = case.net(case.inputs)
            return extractor(scores.argmax(1).tolist(), scores)

    return [
        Arm("forward", case.forward),
        case.ours("gradcam", "gradcam"),
        case.ours("seven", *SEVEN),
        Arm("pytorch-grad-cam", with_grad_cam, lambda: pytorch_grad_cam.GradCAM(case.net, [layer])),
        Arm("captum", lambda _: captum.attribute(case.inputs, target=case.classes)),
        Arm("torchcam", with_torchcam),
    ]


def linear(net: str, size: int) -> list[Arm]:
    """One row of the linear interpreter with its record, and a plain eager forward and backward, of one picture."""
    case = Case(net, 1, size)
    x = case.inputs

    def plain(_: object) -> object:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(case.net(leaf)[0, case.classes[0]], leaf)

    def row(_: object) -> object:
        made = Linear(case.model, x)
        direction = torch.zeros_like(made.y)
        direction[0, case.classes[0]] = 1
        return made.transpose(direction)

    return [Arm("row", row), Arm("forward and backward", plain)]


def integrated_gradients(case: Case) -> list[Arm]:
    """Integrated gradients from the mean colour, here and in captum: equal steps, equally many inputs a forward."""
    from captum.attr import IntegratedGradients

    captum = IntegratedGradients(case.net)
    return [
        case.ours("integrated_gradients", "integrated_gradients", steps=STEPS, baseline="zero"),
        Arm("captum", lambda _: captum.attribute(case.inputs, target=case.classes, n_steps=STEPS,
                                                 internal_batch_size=len(case.images))),
    ]
