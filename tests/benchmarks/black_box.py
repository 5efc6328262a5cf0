"""One arm of the comparison of black-box methods, in a process of its own: prints its CPU seconds and forwards as JSON.

`python tests/benchmarks/black_box.py ARM NET SAMPLES [--weights FILE]`; `run.py` starts all of them in turns. What the
allocator keeps and what one arm has warmed up cannot help another.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402  # after the path of the checkout
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from xai import catalog  # noqa: E402
from xai.batch import Batch, Pacing  # noqa: E402
from xai.images import load_images  # noqa: E402
from xai.model import Model  # noqa: E402
from xai.segments import segment  # noqa: E402
from xai.targets import Target  # noqa: E402
from xai.torchvision_import import ensure_torchvision  # noqa: E402

CHUNK, SIZE, WINDOW = 8, 224, 32
FEWER = {"squeezenet1_0": 7}  # at 8 its largest activation passes the 32 MiB from which glibc maps and faults each anew
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYERS = {"resnet18": "layer4", "squeezenet1_0": "features.12", "vgg16": "features.29"}
Run = Callable[[], int]  # gives the number of forwards that it took


class Case:
    """A torchvision network, random weights or a file's, and a photograph of scikit-image; 8 inputs a
    forward, or the fewer of FEWER."""

    def __init__(self, net: str, samples: int, weights: str | None) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = getattr(ensure_torchvision().models, net)().eval()
        if weights:
            from safetensors.torch import load_file

            self.net.load_state_dict(load_file(weights))
        self.name, self.samples, self.layer = net, samples, LAYERS[net]
        self.chunk = FEWER.get(net, CHUNK)
        self.model = Model(self.net, mean=MEAN, std=STD, size=SIZE, layer=self.layer)
        self.image = load_images("sample:chelsea")[0]
        self.prepared = self.model.preprocessing(self.image)
        self.x = self.batch().inputs
        self.target = int(self.model(self.x).argmax())  # which also folds the weights
        self.model.view(self.layer)  # asked once a model, as the folding

    def batch(self) -> Batch:
        """The picture as a batch whose forward has not run."""
        return Batch(self.model, [self.image], [self.prepared], pacing=Pacing(self.chunk, None, self.chunk))

    def ours(self, name: str, **fields: Any) -> Run:
        """One map of one of our methods, with what `explain` gets for nothing, the map for a second class."""
        method: Any = catalog.find(name)(**fields)

        def run() -> int:
            batch = self.batch()
            batch.want(*method.layers())
            bounds = [batch.bind(Target(text)) for text in ("rank:1", "rank:2")[: 1 + method.shares]]
            before = self.model.cost.forwards
            method.maps_for(batch, bounds, (0,) * len(bounds))
            return self.model.cost.forwards - before

        return run

    def forwards(self, call: Callable[[Tensor], Any], count: int) -> Run:
        """Nothing but forwards, `chunk` inputs at a time."""
        inputs = self.x.repeat(self.chunk, 1, 1, 1)

        def run() -> int:
            for first in range(0, count, self.chunk):
                call(inputs[: count - first])
            return count

        return run


def eager(case: Case) -> Callable[[Tensor], Any]:
    """The network as it is, without gradients."""
    def call(inputs: Tensor) -> Any:
        with torch.no_grad():
            return case.net(inputs)
    return call


def places() -> int:
    """Of a patch of 32 pixels with a step of half of it."""
    return (-(-(SIZE - WINDOW) // (WINDOW // 2)) + 1) ** 2


# --- peers: the packages as they are, and the authors' algorithms where they are scripts ---
def rise_of_the_authors(case: Case) -> Run:
    """The published algorithm: masks one by one by scikit-image, kept in memory, all classes in one product."""
    from skimage.transform import resize

    def run() -> int:
        n, s, p = case.samples, 7, 0.5
        rng, cell = np.random.default_rng(0), -(-SIZE // 7)
        grid = (rng.random((n, s, s)) < p).astype(np.float32)
        masks = np.empty((n, SIZE, SIZE), dtype=np.float32)
        for k in range(n):
            y, x = rng.integers(cell, size=2)
            big = resize(grid[k], ((s + 1) * cell,) * 2, order=1, mode="reflect", anti_aliasing=False)
            masks[k] = big[y : y + SIZE, x : x + SIZE]
        held = torch.from_numpy(masks)[:, None]
        with torch.no_grad():
            parts = [case.net(case.x * held[i : i + CHUNK]).softmax(1) for i in range(0, n, CHUNK)]
        torch.cat(parts).T @ held.view(n, -1) / n / p
        return n

    return run


def occlusion_of_captum(case: Case) -> Run:
    """Patches of 32 pixels by half their side."""
    from captum.attr import Occlusion

    method = Occlusion(case.net)

    def run() -> int:
        with torch.no_grad():
            method.attribute(case.x, sliding_window_shapes=(3, WINDOW, WINDOW), strides=(3, WINDOW // 2, WINDOW // 2),
                             target=case.target, perturbations_per_eval=CHUNK)
        return places()

    return run


def lime_of_lime(case: Case) -> Run:
    """Our segments, one class, 8 pictures at a time, all weights."""
    from lime.lime_image import LimeImageExplainer

    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def classify(pictures: np.ndarray) -> np.ndarray:
        inputs = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.no_grad():
            return np.asarray(case.net(inputs).softmax(1))

    def run() -> int:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            LimeImageExplainer(random_state=0, verbose=False).explain_instance(
                case.prepared.seen, classify, top_labels=1, num_samples=case.samples, batch_size=CHUNK,
                segmentation_fn=lambda pixels: segment(pixels.astype(np.uint8), "slic", 64).numpy())
        return case.samples

    return run


def lime_of_captum(case: Case) -> Run:
    """captum's Lime on our segments."""
    from captum._utils.models.linear_model import SkLearnLasso
    from captum.attr import Lime

    labels = segment(case.prepared.seen, "slic", 64)[None, None].expand(1, 3, -1, -1).contiguous()
    method = Lime(case.net, interpretable_model=SkLearnLasso(alpha=0.001))

    def run() -> int:
        method.attribute(case.x, target=case.target, feature_mask=labels, n_samples=case.samples,
                         perturbations_per_eval=CHUNK)
        return case.samples

    return run


def kernel_of_captum(case: Case) -> Run:
    """captum's KernelShap on our segments."""
    from captum.attr import KernelShap

    labels = segment(case.prepared.seen, "slic", 64)[None, None].expand(1, 3, -1, -1).contiguous()
    method = KernelShap(case.net)

    def run() -> int:
        method.attribute(case.x, target=case.target, feature_mask=labels, n_samples=case.samples,
                         perturbations_per_eval=CHUNK)
        return case.samples

    return run


def partition_of_shap(case: Case) -> Run:
    """shap's PartitionExplainer with its blurring masker."""
    import shap

    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    asked = 0

    def score(pictures: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(pictures)
        inputs = (torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.no_grad():
            return np.asarray(case.net(inputs)[:, case.target : case.target + 1])

    def run() -> int:
        masker = shap.maskers.Image("blur(16,16)", case.prepared.seen.shape)
        shap.PartitionExplainer(score, masker)(case.prepared.seen[None], max_evals=case.samples, batch_size=CHUNK,
                                               silent=True)
        return asked

    return run


def cam_of_grad_cam(kind: str) -> Callable[[Case], Run]:
    """pytorch-grad-cam's ScoreCAM or AblationCAM, 8 channels at a time."""
    def arm(case: Case) -> Run:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layer = case.net.get_submodule(case.layer)

        def run() -> int:
            with getattr(pytorch_grad_cam, kind)(case.net, [layer]) as cam:
                cam.batch_size = CHUNK
                cam(input_tensor=case.x, targets=[ClassifierOutputTarget(case.target)])
            return int(case.model.view(case.layer).channels)

        return run

    return arm


ARMS: dict[str, Callable[[Case], Run]] = {
    "fast": lambda c: c.forwards(c.model.infer, c.samples),
    "eager": lambda c: c.forwards(eager(c), c.samples),
    "rise": lambda c: c.ours("rise", samples=c.samples, agree=1.0),
    "lime": lambda c: c.ours("lime", samples=c.samples),
    "shap_kernel": lambda c: c.ours("shap_kernel", samples=c.samples),
    "shap_partition": lambda c: c.ours("shap_partition", evaluations=c.samples),
    "scorecam": lambda c: c.ours("scorecam"),
    "occlusion": lambda c: c.ours("occlusion", window=WINDOW, stride=WINDOW // 2),
    "ablationcam": lambda c: c.ours("ablationcam"),
    "rise of the authors": rise_of_the_authors,
    "captum Occlusion": occlusion_of_captum,
    "lime package": lime_of_lime,
    "captum Lime": lime_of_captum,
    "captum KernelShap": kernel_of_captum,
    "shap Partition": partition_of_shap,
    "pytorch-grad-cam ScoreCAM": cam_of_grad_cam("ScoreCAM"),
    "pytorch-grad-cam AblationCAM": cam_of_grad_cam("AblationCAM"),
}
FIXED = ("scorecam", "occlusion", "ablationcam", "captum Occlusion", "pytorch-grad-cam ScoreCAM",
         "pytorch-grad-cam AblationCAM")  # their number of forwards is the network's
WARM = 160  # samples of a first run that does not count


def main() -> None:
    """Time one arm with one thread, or several in turns, which then share the state of one process."""
    parser = argparse.ArgumentParser(description="CPU seconds and forwards of each arm in every round, as JSON.")
    parser.add_argument("arms", help="one of " + ", ".join(ARMS) + "; or several with commas")
    parser.add_argument("net", choices=LAYERS)
    parser.add_argument("samples", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--weights")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' own
    torch.set_num_threads(1)
    case = Case(asked.net, asked.samples, asked.weights)
    names = asked.arms.split(",")
    case.samples = min(WARM, asked.samples)
    for name in names:
        if name not in FIXED:
            ARMS[name](case)()
    case.samples = asked.samples
    runs = {name: ARMS[name](case) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(asked.rounds):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            started = time.process_time()
            count = runs[name]()
            found[name].append({"seconds": time.process_time() - started, "forwards": count})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
