"""Records for the tests of pages: real photographs from scikit-image under plausible maps, one panel of each kind."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from xai import panels as p
from xai.result import Cost, ImageRecord, ModelRecord, Provenance, Result, Run, Verdict

PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "astronaut")


def photograph(name: str) -> np.ndarray:
    """A photograph (h, w, 3) uint8 that ships with scikit-image."""
    return np.asarray(getattr(skimage.data, name)())


def blob(height: int, width: int, down: float, across: float, size: float = 0.15) -> np.ndarray:
    """A Gaussian hill on a grid, its centre and width in shares of the sides."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.exp(-((y[:, None] - down) ** 2 + (x[None] - across) ** 2) / (2 * size**2)).astype(np.float32)


def model_record(spec: str = "xai:photo20", **changes: object) -> ModelRecord:
    """The card of a network."""
    record = ModelRecord(
        spec=spec, weights_hash=hashlib.sha256(spec.encode()).hexdigest()[:16], weights="shipped", layer="stages.3",
        layer_reason="the last output with spatial extent that the gradient reaches", grid=(13, 13), head="classes",
        preprocessing="resize 256, centre crop 224", preprocessing_reason="stated by the source", parameters=712_345,
        capabilities=("forward", "gradients"), notes=("Trained on 20 classes.",),
    )  # fmt: skip
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def picture_panels(name: str, digest: str) -> list[p.AnyPanel]:
    """Original with its frame, what the network saw (a centre crop of 224), and the predictions."""
    image = Image.fromarray(photograph(name))
    small = image.copy()
    small.thumbnail((320, 320))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    ratio = small.width / image.width
    frame = ((left * ratio, top * ratio), ((left + side) * ratio, (top + side) * ratio))
    seen = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    rows = (
        (f"{name} class", 0.7123),
        ("second, with a comma", 0.2),
        ("third", 0.05),
        ("fourth", 0.0004),
        ("fifth", 0.0),
    )
    columns = (p.Column("class"), p.Column("probability", "probability"))
    return [
        p.Picture(key="original", title=f"{name}.jpg", picture=digest, pixels=np.array(small),
                  marks=(p.Mark("box", frame, "what the network saw"),)),
        p.Picture(key="seen", title="what the network saw", picture=digest, pixels=np.array(seen)),
        p.Table(key="predictions", title="Predictions", picture=digest, columns=columns, rows=rows),
    ]  # fmt: skip


def heatmap(name: str, digest: str, side: int, view: p.View) -> p.Heatmap:
    """A map with a hill off the centre; signed ones with a valley and fine noise."""
    seed = int(hashlib.sha256(f"{name}{side}{view}".encode()).hexdigest()[:8], 16)
    values = blob(side, side, 0.3, 0.65)
    if view == "signed":
        values -= 0.6 * blob(side, side, 0.75, 0.25)
        values += 0.1 * np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    return p.Heatmap(key="map", title=f"{name} map", picture=digest, values=values, view=view)


def result(
    names: Sequence[str] = ("coffee",), method: str = "gradcam", title: str = "Grad-CAM", side: int = 13,
    view: p.View = "relu", model: ModelRecord | None = None, **changes: object,
) -> Result:  # fmt: skip
    """One method on one model over photographs."""
    found: list[p.AnyPanel] = []
    images, verdicts = [], []
    for name in names:
        pixels = photograph(name)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        images.append(
            ImageRecord(name=f"{name}.jpg", hash=digest, size=pixels.shape[:2], target=f"{name} class", label=name)
        )
        found += [*picture_panels(name, digest), heatmap(name, digest, side, view)]
        verdicts.append(Verdict(name="finite", value=1.0, threshold=1.0, passed=True, picture=digest,
                                sentence="Every value of the map is a finite number."))  # fmt: skip
        verdicts.append(Verdict(name="class-sensitive", value=0.98, threshold=0.9, passed=name != "rocket",
                                picture=digest,
                                sentence="The map for another class was compared.",
                                advice="Try a contrast."))  # fmt: skip
    command = f"xai explain {' '.join(names)} --method {method}"
    made = Result(
        analyzer=method, version=1, title=title, summary="One map a picture.", reference="Somebody et al. 2017, eq. 1",
        parameters={"layer": "auto", "samples": 16, "sigma": 0.15}, models=(model or model_record(),),
        images=tuple(images),
        target="top1", panels=tuple(found), verdicts=tuple(verdicts),
        cost=Cost(forwards=len(names), backwards=len(names), seconds=0.25, peak_memory=311_000_000),
        provenance=Provenance(command=command, seed=0, device="cpu", precision="float32", threads=1,
                              created="2025-01-01T00:00:00Z", versions={"xai": "0.1.0"}),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def write_run(folder: Path, results: Sequence[Result], **changes: object) -> Path:
    """Write results and their run.json, without a page."""
    names = []
    for number, one in enumerate(results):
        names.append(f"{number}__{one.analyzer}")
        (folder / names[-1]).mkdir(parents=True)
        one.write(folder / names[-1])
    run = Run(title="Maps of photographs", command="xai explain coffee.jpg --method gradcam", results=tuple(names))
    dataclasses.replace(run, **changes).write(folder)  # type: ignore[arg-type]
    return folder


def every_kind() -> tuple[p.AnyPanel, ...]:
    """One panel of each of the ten kinds, of no picture, with the awkward values that real ones bring."""
    r = np.random.default_rng(0)
    x = np.linspace(0, 1, 20)
    y = np.stack([np.exp(-3 * x), np.where(x > 0.5, np.nan, 0.3)])
    return (
        p.Number(key="number", title="A number", value=-0.8123, unit="CKA", low=-0.83, high=-0.79, note="A note."),
        p.Table(key="table", title="A table", columns=(p.Column("layer"), p.Column("width", "px"), p.Column("share",
                                                                                                            "probability")),
                rows=(("conv1", 64, 0.31), ("fire2", None, 1e-7), ("fire3", True, 1.0))),
        p.Heatmap(key="heatmap", title="A map", values=r.standard_normal((8, 12)).astype(np.float32), unit="power",
                  error=np.full((8, 12), 0.125, np.float32), axes=(p.Axis("v", "cycles/px"), p.Axis("u", "cycles/px"))),
        p.Picture(key="picture", title="A picture", pixels=photograph("coffee")[::4, ::4],
                  marks=(p.Mark("point", ((20, 30),), "peak"), p.Mark("outline", ((5, 5), (50, 9), (30, 60)), "leaf"))),
        p.Curve(key="curve", title="Curves", x=x, y=y, names=("falls", "breaks off"), low=y - 0.1, high=y + 0.1,
                axes=(p.Axis("removed", "share"), p.Axis("probability"))),
        p.Scatter(key="scatter", title="Points", xy=r.standard_normal((30, 2)),
                  labels=tuple(f"unit {i}" for i in range(30)),
                  groups=r.integers(0, 3, 30)),
        p.Histogram(key="histogram", title="Counts", edges=np.linspace(-3, 3, 11), counts=r.integers(0, 90, 10)),
        p.Matrix(key="matrix", title="A matrix", values=r.standard_normal((3, 4)), rows=("a", "b", "c"), columns=("w",
                                                                                                                  "x",
                                                                                                                  "y",
                                                                                                                  "z")),
        p.Graph(key="graph", title="A graph", nodes=("fur", "eye", "cat"), edges=((0, 2, 0.9), (1, 2, -0.4))),
        p.Text(key="text", title="A text", text="Careful: <b>few</b> pictures.", tone="warning"),
    )  # fmt: skip
