"""A run of several pictures, methods and models: what fails alone fails alone, and what is finished stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import xai
from analyzers.attribution.gradcam import GradCAM
from analyzers.attribution.saliency import Saliency
from tests.gradient_nets import Attentive, conv_net, made, pictures, unusual
from xai import run
from xai.analyzer import Maps, Passes
from xai.ask import Ask
from xai.attribution import Attribution
from xai.batch import Batch
from xai.catalog import entries, find
from xai.errors import XaiError
from xai.evidence import NAMES, QUICK
from xai.evidence import plan as checks_of
from xai.images import load_images
from xai.model import Model
from xai.panels import Heatmap
from xai.plan import plan
from xai.result import Result, Run
from xai.targets import Bound

PHOTO = pictures(5)
CLASSES = {name: find(name) for name in entries()}
MAPPERS = [name for name, cls in CLASSES.items() if issubclass(cls, Attribution)]


def net() -> Any:
    return made(conv_net(), precision="float32")


def maps(result: Result) -> dict[str, np.ndarray]:
    """Values by picture."""
    return {str(p.picture): p.values for p in result.panels if isinstance(p, Heatmap)}


@pytest.fixture
def sulking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saliency refuses the third picture, whatever batch it is in."""
    bad = load_images(PHOTO)[2].hash
    plain = Saliency.maps

    def refuse(self: Saliency, batch: Batch, target: Bound) -> Maps:
        if bad in batch.hashes:
            raise XaiError("the picture must please saliency; got one that does not. Take another.")
        return plain(self, batch, target)

    monkeypatch.setattr(Saliency, "maps", refuse)


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.usefixtures("sulking")
def test_one_picture_that_a_method_refuses_costs_that_map_alone(chunk: int) -> None:
    done = xai.explain(net(), list(PHOTO), ["gradcam", "saliency"], chunk=chunk)
    by_method = {r.analyzer: r for r in done.results}
    assert [i.name for i in by_method["gradcam"].images] == [f"picture {i}" for i in range(5)]
    assert [i.name for i in by_method["saliency"].images] == [f"picture {i}" for i in (0, 1, 3, 4)]
    (failure,) = done.failures
    assert failure.name == "saliency on module:Sequential, 1 of 5 pictures (picture 2)"
    assert "please saliency" in failure.sentence
    whole = xai.explain(net(), [p for i, p in enumerate(PHOTO) if i != 2], "saliency").result
    for key, values in maps(whole).items():
        assert_close(maps(by_method["saliency"])[key], values, rtol=0, atol=1e-5 * float(values.max()))


def test_a_method_that_refuses_every_picture_is_asked_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(self: Saliency, batch: Batch, target: Bound) -> Maps:
        asked.append(len(batch))
        raise XaiError("nothing must ever please; got a picture. Give up.")

    monkeypatch.setattr(Saliency, "maps", refuse)
    done = xai.explain(net(), list(PHOTO), ["saliency", "gradcam"], chunk=2)
    assert asked == [2, 1, 1]
    assert [r.analyzer for r in done.results] == ["gradcam"]
    assert len(done.results[0].images) == 5
    with pytest.raises(XaiError, match="Give up"):
        xai.explain(net(), list(PHOTO), "saliency", chunk=2)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_finished_pictures_survive_ctrl_c_and_a_bug(stop: type[BaseException], monkeypatch: pytest.MonkeyPatch,
                                                    tmp_path: Path) -> None:
    plain, count = GradCAM.maps, iter(range(100))

    def fall(self: GradCAM, batch: Batch, target: Bound) -> Maps:
        if next(count) == 3:  # the fourth picture
            raise stop
        return plain(self, batch, target)

    monkeypatch.setattr(GradCAM, "maps", fall)
    out = tmp_path / "out"
    if stop is KeyboardInterrupt:
        assert xai.explain(net(), list(PHOTO), ["saliency", "gradcam"], chunk=1, out=out, evidence="off").interrupted
    else:
        with pytest.raises(ZeroDivisionError):
            xai.explain(net(), list(PHOTO), ["saliency", "gradcam"], chunk=1, out=out, evidence="off")
    kept = {name: Result.load(out / f"module-Sequential__{name}") for name in ("saliency", "gradcam")}
    assert [i.name for i in kept["gradcam"].images] == ["picture 0", "picture 1", "picture 2"]
    assert [i.name for i in kept["saliency"].images] == ["picture 0", "picture 1", "picture 2", "picture 3"]
    for result in kept.values():
        pictures_of = {i.hash for i in result.images}
        assert pictures_of == {p.picture for p in result.panels} == {v.picture for v in result.verdicts}
    assert "Stopped early" in (out / "index.html").read_text()


def test_the_same_picture_twice_is_two_pictures_with_the_same_map() -> None:
    images = load_images([PHOTO[0], PHOTO[1], PHOTO[0]], labels=["a", "b", "c"])
    result = xai.explain(net(), images, "smoothgrad", chunk=2, settings={"samples": "3"}).result
    first, second, again = (i.hash for i in result.images)
    assert again == f"{first}-2"
    assert second not in again
    assert [i.label for i in result.images] == ["a", "b", "c"]
    values = maps(result)
    assert_close(values[again], values[first], rtol=0, atol=1e-5 * float(np.abs(values[first]).max()))
    assert sum(v.picture == again for v in result.verdicts) == sum(v.picture == first for v in result.verdicts)


@pytest.mark.parametrize("name", MAPPERS)
def test_the_quick_card_stays_within_its_budget(name: str) -> None:
    """32 forwards a map, or half of what the map itself took; what is blind to the class fails."""
    own = unusual(Attentive, "float32") if "attention" in CLASSES[name].needs else net()
    cells = {"segmentation": "grid", "baseline": "black"}  # of one pixel here, whose mean colour would hide nothing
    has = "segmentation" in CLASSES[name]().parameters()
    short = {"steps": "100"} if CLASSES[name]().parameters().get("steps", 0) > 100 else {}
    cost = (result := xai.explain(own, list(PHOTO), name, settings=cells if has else short).result).cost
    work = cost.forwards - 5 + 2 * cost.backwards
    assert cost.check_forwards + 2 * cost.check_backwards <= 5 * max(QUICK, work / 5 / 2)
    told = [v for v in result.verdicts if v.name == "class-sensitive"]
    assert len(told) == 5
    if name != "extremal_perturbation":  # in a network as small as this its area outweighs any class
        assert any(v.passed for v in told) != (name in ("eigencam", "attention_rollout"))
    for check in NAMES:
        assert len([v for v in result.verdicts if v.name == check]) == 5


def test_a_method_that_is_too_dear_is_not_made_again() -> None:
    class Dear(GradCAM):
        def passes(self, model: Model) -> Passes:
            return Passes(forwards=1, backwards=16)

    found = checks_of(Dear(), net(), "quick", classes=True, spent=33)
    assert found.probe is None
    assert found.why == "another map costs 33 forwards, too many for the quick card"


@pytest.mark.parametrize("chunk", [1, 5])
def test_progress_moves_within_a_picture_and_ends_whole(chunk: int) -> None:
    told: list[tuple[int, int]] = []
    methods, settings = ("gradcam", "smoothgrad"), {"samples": "20"}
    xai.explain(net(), list(PHOTO), methods, settings=settings, chunk=chunk, progress=lambda *at: told.append(at))
    rows = plan(Ask(models=(net(),), images=tuple(PHOTO), methods=methods, settings=settings)).rows
    totals = {total for _, total in told}
    checks = 5 * 2 * 12 + 5 * (2 + 3 * 2) + 5 * (2 + 4 * 3)  # removal; three backwards; four maps of one sample
    assert totals == {sum(r.forwards + 2 * r.backwards for r in rows) + checks}
    done = [at for at, _ in told]
    assert done == sorted(done)
    assert done[-1] == totals.pop()
    assert len(set(done)) >= 2 * 5 + 2


def test_nobody_is_told_after_the_run() -> None:
    model = net()
    told: list[int] = []
    xai.explain(model, list(PHOTO), progress=lambda done, total: told.append(done))
    before = len(told)
    model(torch.zeros(1, 3, 6, 6))
    assert len(told) == before
    assert model.cost.told is None


def test_a_plan_names_what_could_not_be_done_and_keeps_the_rest() -> None:
    ask = Ask(models=(net(), net()), images=tuple(PHOTO), methods=("gradcam", "saliency"), settings={"layer": "nope"})
    found = plan(ask)
    assert [r.method for r in found.rows] == ["(shared forward)", "saliency"] * 2
    assert [f.name for f in found.failures] == ["gradcam on module:Sequential"] * 2
    with pytest.raises(XaiError, match="class 7|from 0 to 3"):
        plan(Ask(models=(net(),), images=tuple(PHOTO), target="class:7"))


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = net()
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(XaiError, match="output folder must be writable"):
            xai.explain(model, list(PHOTO), out=place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(XaiError, match="which holds other files"):
        xai.explain(model, list(PHOTO), out=tmp_path / "mine")
    assert model.cost.forwards == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]


def test_pictures_by_path_are_named_in_the_command(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a b.png"
    Image.fromarray((PHOTO[0].transpose(1, 2, 0) * 255).astype(np.uint8)).save(path)
    result = xai.explain("xai:photo20", path).result
    assert result.provenance.command.startswith(f"xai explain '{path}' --model xai:photo20")


def test_all_pictures_bad_names_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(XaiError) as told:
        run.run(Ask(models=(net(),), images=(str(tmp_path / "a.png"), str(tmp_path / "b.png"))))
    assert "a.png" in str(told.value)
    assert "b.png" in str(told.value)


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("spoilt", [False, True])
def test_a_batch_beyond_memory_goes_on_picture_by_picture(spoilt: bool, chunk: int,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two pictures at a time are too many; where `spoilt`, the fourth is too much at any time."""
    plain, bad = Batch.output, load_images(PHOTO)[3].hash if spoilt else None

    def short(self: Batch) -> torch.Tensor:
        if len(self) > 2 or bad in self.hashes:
            raise XaiError("the memory must be enough for it; got too little. Lower --memory.")
        return plain(self)

    monkeypatch.setattr(Batch, "output", short)
    done = xai.explain(net(), list(PHOTO), ["gradcam", "lrp"], chunk=chunk)
    for result in done.results:
        assert [i.name for i in result.images] == [f"picture {i}" for i in range(5) if not (spoilt and i == 3)]
    told = [f"{m} on module:Sequential, 1 of 5 pictures (picture 3)" for m in ("gradcam", "lrp")]
    assert [f.name for f in done.failures] == (told if spoilt else [])


def test_a_network_that_runs_on_nothing_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def never(self: Batch) -> torch.Tensor:
        asked.append(len(self))
        raise XaiError("the input must be one that it can run; got another. Check the size.")

    monkeypatch.setattr(Batch, "output", never)
    with pytest.raises(XaiError, match="Check the size"):
        xai.explain(net(), list(PHOTO), ["gradcam", "saliency"], chunk=2)
    assert asked == [2, 1, 1]


def test_a_result_that_no_record_can_hold_does_not_cost_the_others(tmp_path: Path) -> None:
    done = xai.explain(net(), list(PHOTO), ["gradcam", "saliency"])
    broken = dataclasses.replace(done.results[1], panels=(Heatmap(key="map", title=None, values=PHOTO[0, 0]),))  # type: ignore[arg-type]  # on purpose
    done.results[1] = broken
    out = tmp_path / "out"
    run.write(done, out)
    written = Run.load(out)
    assert [Result.load(out / name).analyzer for name in written.results] == ["gradcam"]
    assert [f.name for f in written.failures] == ["saliency"]
    assert sorted(p.name for p in out.iterdir()) == ["index.html", "module-Sequential__gradcam", "run.json"]
    with pytest.raises(XaiError, match="mistake in the analyzer"):
        run.write(run.Explanation(results=[broken]), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_pictures_of_which_none_fits_the_network_are_a_bad_input() -> None:
    model = made(conv_net(channels=5), channels=5, precision="float32")
    with pytest.raises(XaiError, match="one of the 5 pictures must be usable; got none that is"):
        xai.explain(model, list(PHOTO), ["gradcam", "saliency"])


def test_each_picture_is_decoded_once_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    from xai import image_sources

    for i, one in enumerate(PHOTO):
        Image.fromarray((one.transpose(1, 2, 0) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no picture")
    read, plain = [], image_sources.decode
    monkeypatch.setattr(image_sources, "decode", lambda stream, name: read.append(name) or plain(stream, name))
    done = xai.explain([net(), net()], tmp_path, ["gradcam", "saliency"])
    assert sorted(read) == sorted(2 * [*(f"{i}.png" for i in range(5)), "bad.png"])
    assert [f.name for f in done.failures] == ["bad.png"]
    assert [len(r.images) for r in done.results] == [5] * 4


def test_label_and_top1_that_agree_everywhere_are_one_result() -> None:
    said = [i.target for i in xai.explain(net(), list(PHOTO), "gradcam").result.images]
    images = load_images(list(PHOTO), labels=[int(name.split()[-1]) for name in said])
    done = xai.explain(net(), images, "gradcam", target="label+top1")
    assert [r.target for r in done.results] == ["label"]
    assert not done.failures
