"""What holds for every analyzer that the catalog lists: record, seeds, batches, clean-up, page, cost, refusals, health.

No test names an analyzer. A new file under `analyzers/` is covered as it is: its subject is built from its `needs`, and
what only a map can be asked (the same in any batch, ...) is asked of every `Attribution`.
"""

from __future__ import annotations

import dataclasses
import html
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reports.export import file_name
from tests.gradient_nets import Attentive
from tests.prototype_nets import Distances
from xai import catalog, run, seeds
from xai.ask import Ask
from xai.attribution import Attribution
from xai.errors import XaiError
from xai.images import Image, Images
from xai.metric import Metric
from xai.model import WANTS, Model
from xai.panels import Heatmap
from xai.plan import plan
from xai.result import Result, json_schema
from xai.subject import Subject, as_targets

CLASSES = {name: catalog.find(name) for name in sorted(catalog.entries())}
MAPPERS = [name for name, cls in CLASSES.items() if issubclass(cls, Attribution)]
COMPARING = [name for name, cls in CLASSES.items() if "prototypes" in cls.needs]
ATTENTIVE = [name for name, cls in CLASSES.items() if "attention" in cls.needs]
CAPABILITIES = frozenset({"forward", "gradients", "hooks"})
LABELS = ("ant", "bee", "cat", "dog")
SIZE, FEW = 12, 3
SENTENCE = re.compile(r"^\S.* must (be|have) .+; got .+\. \S.*[.?]$", re.DOTALL)

every = pytest.mark.parametrize("name", list(CLASSES))
every_mapper = pytest.mark.parametrize("name", MAPPERS)


# --- networks: small, seeded, and each as awkward as real ones ---
def relu(spelling: str) -> Callable[[Tensor], Tensor]:
    """One ReLU in four spellings; a function is no module, so no hook and no module walk can see it."""
    return {"module": nn.ReLU(), "module in place": nn.ReLU(inplace=True), "function": F.relu,
            "function in place": lambda x: F.relu(x, inplace=True)}[spelling]


class Block(nn.Module):
    """Convolutions with batch norm and a sum around them; in place where the ReLU is."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.in_place = relu(spelling), spelling.endswith("in place")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(self.relu(self.norm1(self.one(x)))))
        if self.in_place:
            y += x
        else:
            y = y + x
        return self.relu(y)


class Net(nn.Module):
    """Stem, residual block, dropout, a pooled or a flattened head. Dropout and norms tell train mode from eval mode."""

    def __init__(self, head: str, spelling: str, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), relu(spelling)
        self.block, self.drop = Block(width, spelling), nn.Dropout(0.5)
        pool = nn.AdaptiveAvgPool2d(1) if head == "pooled" else nn.MaxPool2d(2)
        self.head = nn.Sequential(pool, nn.Flatten(), nn.Linear(width * (1 if head == "pooled" else 36), len(LABELS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.block(self.relu(self.norm(self.stem(x))))))


class Looking(Net):
    """The same around a transformer: patches of what the stem gives, three spellings of attention, the class token."""

    def __init__(self, head: str, spelling: str, width: int = 6) -> None:
        super().__init__(head, spelling, width)
        self.look, self.head = Attentive(), nn.Sequential(nn.Flatten(), nn.Linear(width, len(LABELS)))
        self.look.head = nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.relu(self.norm(self.stem(x))), 2)
        return self.head(self.drop(self.block(self.look(x[:, :3] - x[:, 3:])[..., None, None])))


class Comparing(Net):
    """The same before a head that compares with prototypes."""

    def __init__(self, head: str, spelling: str, width: int = 6) -> None:
        super().__init__(head, spelling, width)
        linear = self.head[-1]
        self.head[-1] = Distances(linear.in_features, len(LABELS))


KIND: dict[str, type[Net]] = {"net": Net}  # what `net` makes: for methods that read attention a transformer, ...


@pytest.fixture(autouse=True)
def _suited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that read attention are asked about a transformer wherever the others get convolutions."""
    asked = getattr(request.node, "callspec", None)
    if asked is not None and asked.params.get("name") in ATTENTIVE:
        monkeypatch.setitem(KIND, "net", Looking)
    if asked is not None and asked.params.get("name") in COMPARING:
        monkeypatch.setitem(KIND, "net", Comparing)


def net(head: str = "pooled", spelling: str = "module") -> Net:
    """In eval mode; all spellings of one head have the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = KIND["net"](head, spelling)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean, -0.3, 0.3)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.uniform_(part.bias, -0.3, 0.3)
    return made.eval()


def tokens() -> nn.Module:
    """A small transformer."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Attentive().eval()


class Meter:
    """Counts pictures that go through a network and back, and fails from a pass on if told so. Copies share it."""

    def __init__(self) -> None:
        self.passes = Counter[str]()
        self.calls = Counter[str]()
        self.task = -1  # the last backward that was told
        self.fail_from: tuple[str, int] | None = None
        self.problem: type[BaseException] = RuntimeError

    def __deepcopy__(self, memo: Any) -> Meter:
        return self

    def tick(self, way: str, pictures: int) -> None:
        self.passes[way] += pictures
        self.calls[way] += 1
        if self.fail_from is not None and way == self.fail_from[0] and self.calls[way] >= self.fail_from[1]:
            raise self.problem("the power went out")


class Back(torch.autograd.Function):
    """Tells the meter of every backward, once: some begin at a layer and reach the input, some end at a layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter) -> Tensor:
        ctx.meter = meter
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        task = torch._C._current_graph_task_id()
        if task != ctx.meter.task:
            ctx.meter.task = task
            ctx.meter.tick("back", len(gradient))
        return gradient, None


class Metered(nn.Module):
    """A network under a meter."""

    def __init__(self, inner: nn.Module, meter: Meter) -> None:
        super().__init__()
        self.inner, self.meter = inner, meter

    def forward(self, x: Tensor) -> Tensor:
        self.meter.tick("forth", len(x))  # at its entry: some passes stop at a layer
        return Back.apply(self.inner(Back.apply(x, self.meter)), self.meter)


class Uncopied(nn.Module):
    """A network that holds something that cannot be copied, as a lock or a file."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.inner(x)


# --- subjects ---
def analyzer(name: str) -> Any:
    """With its defaults, but of samples, steps and the like three must do."""
    return CLASSES[name](**few(name))


def few(name: str) -> dict[str, int]:
    """Its counts, made small: three or the least that is allowed, of samples twice that."""
    return {f.name: max(FEW, (1 + (f.name == "samples")) * int(f.metadata.get("low") or 0))
            for f in dataclasses.fields(CLASSES[name]) if type(f.default) is int and f.default > 7}


def settings(name: str) -> dict[str, str]:
    """The same in words."""
    return {f"{name}.{key}": str(value) for key, value in few(name).items()}


def model(module: nn.Module | None = None, size: int = SIZE, **options: Any) -> Model:
    module = net() if module is None else module
    return Model(module, mean=[0.4] * 3, std=[0.3] * 3, size=size, labels=LABELS, **options)


def images(count: int = 2, level: float | None = None) -> Images:
    """A bright, noisy box on a dark, noisy ground, or flat pictures of one level; with labels, boxes and masks."""
    rng, made = np.random.default_rng(7), []
    for i in range(count):
        pixels = rng.random((3, 14, 16), dtype=np.float32)
        mask = np.zeros((14, 16), dtype=bool)
        mask[3:9, 4:11] = True
        pixels = np.where(mask, 0.5 + 0.5 * pixels, 0.3 * pixels)  # something to see: hiding it moves the scores
        made.append(Image.of(f"picture {i}.png", pixels if level is None else np.full_like(pixels, level), mask=mask,
                             label=i % len(LABELS), boxes=np.array([[3, 4, 11, 9]], dtype=np.float32)))
    return Images.of(made)


def subject(name: str, made: Model | None = None, pictures: Images | None = None, **more: Any) -> Subject:
    """What the analyzer needs: none, one or two models, and pictures if it looks at any, as many as it takes."""
    needs, fewest = CLASSES[name].needs, CLASSES[name].fewest
    pictures = images(max(2, fewest)) if pictures is None or len(pictures) < fewest else pictures
    wanted = 2 if "two_models" in needs else 1 if needs & (CAPABILITIES | {"weights"}) else 0
    models = (model() if made is None else made, model(net("flat")))[:wanted]
    looks = needs & {"images", "labels", "boxes", "masks"}
    more = {"evidence": "off", **more}  # the evidence card has its own tests
    return Subject(models, pictures if looks else None, **more)


def explained(name: str, module: nn.Module | None = None, **more: Any) -> Result:
    return analyzer(name)(subject(name, model(module), **more))


# --- reading results ---
def content(result: Result, *, without: Sequence[str] = ("created",)) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record but for time, memory and, in the provenance, `without`; arrays to the bit."""
    record, arrays = result.record()
    record["cost"] = {k: v for k, v in record["cost"].items() if k not in ("seconds", "peak_memory")}
    record["provenance"] = {k: v for k, v in record["provenance"].items() if k not in without}
    return record, {k: v.tobytes() + repr((v.dtype, v.shape)).encode() for k, v in arrays.items()}


def maps(result: Result) -> dict[tuple[str | None, str], Tensor]:
    """Maps and error maps by picture and key."""
    found = {}
    for panel in result.panels:
        if isinstance(panel, Heatmap):
            found[panel.picture, panel.key] = torch.as_tensor(panel.values)
            if panel.error is not None:
                found[panel.picture, f"{panel.key} error"] = torch.as_tensor(panel.error)
    return found


def agree(actual: Result, expected: Result) -> None:
    """Every map of `actual` equals the one of that picture in `expected`, within 1e-5 of its maximum."""
    mine, theirs = maps(actual), maps(expected)
    assert mine
    assert mine.keys() <= theirs.keys()
    scores_only = "forward" in CLASSES[actual.analyzer].needs  # their errors are of differences of rounded scores
    for key, values in mine.items():
        scale = theirs[key[0], key[1].removesuffix(" error")] if scores_only else theirs[key]
        top = float(scale.abs().max())
        assert top > 0 or exact(key[1], theirs[key])
        assert_close(values, theirs[key], rtol=0, atol=1e-5 * top, msg=lambda text, key=key: f"{key}: {text}")


def exact(key: str, values: Tensor) -> bool:
    """Whether these are the errors of a map that has none: every coalition was asked, say."""
    return key.endswith(" error") and not values.any()


def in_chunks(name: str, pictures: Images, chunk: int, head: str = "pooled") -> Result:
    return run.explain(model(net(head)), pictures, name, chunk=chunk, settings=settings(name), evidence="off").result


def refused(problem: XaiError) -> str:
    """What is said, in the one shape."""
    assert SENTENCE.match(str(problem)), str(problem)
    return str(problem)


def flat(values: Tensor) -> bool:
    """Whether a map is the same everywhere, or nowhere a number."""
    known = values[values.isfinite()]
    return not len(known) or float(known.max() - known.min()) <= 1e-6 * float(known.abs().max())


def check_verdicts(result: Result) -> None:
    """Exactly the maps with values that are no numbers are called not finite, exactly the flat ones constant."""
    whole = {picture: values for (picture, key), values in maps(result).items() if key == "map"}
    for name, wrong in (("finite", lambda v: not bool(v.isfinite().all())), ("not constant", flat)):
        said = {v.picture for v in result.verdicts if v.name == name and not v.passed}
        assert {picture for picture, values in whole.items() if wrong(values)} == said


# --- record and page ---
@every
def test_the_record_survives_a_round_trip_and_fits_the_schema(name: str, tmp_path: Path) -> None:
    result = explained(name)
    back = Result.load(result.save(tmp_path / "there"))
    assert content(back, without=()) == content(result, without=())
    for read, panel in zip(back.panels, result.panels, strict=True):
        assert type(read) is type(panel)
        for key, value in vars(panel).items():
            if isinstance(value, np.ndarray):
                assert getattr(read, key).dtype == value.dtype
                assert getattr(read, key).tobytes() == value.tobytes()
    assert (back.cost, back.provenance) == (result.cost, result.provenance)
    record, arrays = result.record()
    jsonschema.Draft202012Validator(json_schema()).validate(record)
    assert arrays
    assert record["analyzer"] == name


@every
def test_the_page_draws_with_every_map_beside_it(name: str, tmp_path: Path) -> None:
    result = explained(name)
    run.write(run.Explanation(results=[result]), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert html.escape(result.title) in page
    assert html.escape(result.title) in result._repr_html_()
    for image in result.images:
        assert image.name in page
    panels = [p for p in result.panels if isinstance(p, Heatmap)]
    for panel in panels:
        with Pil.open(tmp_path / "out" / "pictures" / f"{file_name(panel)}.png") as drawn:
            assert drawn.size == panel.values.shape[::-1]
    assert len(list((tmp_path / "out").glob("pictures/*.png"))) == len(panels)
    assert len(panels) >= 2 or name not in MAPPERS


# --- numbers ---
@every
def test_the_same_seed_gives_the_same_numbers_and_random_ones_follow_the_seed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, ...]] = []
    real = seeds.generator

    def watched(seed: int, *parts: str) -> torch.Generator:
        drawn.extend([parts] if parts != ("example",) else [])
        return real(seed, *parts)

    monkeypatch.setattr(seeds, "generator", watched)
    made, again, other = subject(name), subject(name), subject(name, seed=1)
    first = content(analyzer(name)(made))
    assert content(analyzer(name)(made)) == first
    torch.manual_seed(99)  # the caller's own randomness is no business of an analyzer
    assert content(analyzer(name)(again)) == first
    without = ("created", "seed")
    differs = content(analyzer(name)(other), without=without) != content(analyzer(name)(again), without=without)
    assert differs == bool(drawn) or all(parts[-1] == "random" for parts in drawn)  # a metric's control, not scored


@every_mapper
@pytest.mark.parametrize("head", ["pooled", pytest.param("flat", marks=pytest.mark.slow)])
def test_a_map_does_not_depend_on_what_else_is_in_the_batch(name: str, head: str) -> None:
    pictures = images(5)
    together = in_chunks(name, pictures, 5, head)
    assert len({key[0] for key in maps(together)}) == 5
    for chunk in (1, 2, 32):
        agree(in_chunks(name, pictures, chunk, head), together)
    for chunk in (1, 5):
        agree(in_chunks(name, pictures[3:4], chunk, head), together)
    shuffled = in_chunks(name, Images.of(pictures[i] for i in (4, 1, 3, 0, 2)), 3, head)
    agree(shuffled, together)
    assert maps(shuffled).keys() == maps(together).keys()


@every_mapper
@pytest.mark.parametrize("head", ["pooled", "flat"])
@pytest.mark.parametrize("spelling", [*(pytest.param(one, marks=pytest.mark.slow) for one in
                                        ("module in place", "function")), "function in place"])
def test_every_spelling_of_a_relu_gives_the_same_map(name: str, head: str, spelling: str) -> None:
    agree(explained(name, net(head, spelling)), explained(name, net(head)))


@every_mapper
def test_a_module_in_train_mode_or_in_float64_gives_the_map_of_its_plain_twin(name: str) -> None:
    plain = explained(name)
    assert content(explained(name, net().train())) == content(plain)
    exact = explained(name, net().double())
    assert exact.provenance.precision == "float64"
    agree(exact, plain)


@every_mapper
def test_a_module_that_cannot_be_copied_is_used_in_eval_mode_and_stays_as_it_was(name: str) -> None:
    module = Uncopied(net()).train()
    before = state(module)
    result = explained(name, module)
    assert state(module) == before
    assert content(result) == content(explained(name, Uncopied(net()).eval()))
    assert not any(flat(values) for key, values in maps(result).items() if not exact(key[1], values))


@every_mapper
def test_a_transformer_gets_the_same_map_in_any_batch_or_a_sentence(name: str) -> None:
    def mapped(pictures: Images) -> Result:
        return analyzer(name)(subject(name, model(tokens(), 6), pictures))

    try:
        together = mapped(images(3))
    except XaiError as problem:
        refused(problem)
        return
    agree(mapped(images(3)[1:2]), together)
    assert not any(flat(values) for key, values in maps(together).items() if not exact(key[1], values))


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_switched_gradients_off(name: str, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    module = net()
    with mode():
        inside = explained(name, module)
        again = [run.explain(model(module), images(), name, settings=settings(name),
                             evidence="off").result] if name in MAPPERS else []
    expected = explained(name)
    assert content(inside) == content(expected)
    for result in again:
        assert content(result)[1] == content(expected)[1]


# --- what is left behind ---
def state(module: nn.Module) -> list[Any]:
    """All that an analyzer could change in a module or around it, as values that compare."""
    found: list[Any] = []
    for name, part in module.named_modules():
        hooks = {k: list(v.items()) for k, v in vars(part).items() if "hooks" in k and isinstance(v, dict)}
        found.append((name, type(part), part.training, hooks, sorted(vars(part))))
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        grad = None if value.grad is None else (id(value.grad), value.grad.numpy().tobytes())
        bits = value.detach().numpy().tobytes()
        found.append((name, id(value), value.dtype, bits, value.requires_grad, grad, value._backward_hooks))
    everywhere = nn.modules.module
    found.append([dict(getattr(everywhere, k)) for k in vars(everywhere) if k.startswith("_global_") and "hooks" in k])
    found.append((torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()))
    found.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
                  torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
                  torch._C._len_torch_function_stack()))
    return found


def lived_in() -> tuple[Metered, Meter]:
    """A network that its owner has used: part in train mode, part frozen, with gradients and hooks of his own."""
    meter = Meter()
    module = Metered(net("flat", "module in place"), meter)
    inner = module.inner
    assert isinstance(inner, Net)
    inner.block.train()
    inner.stem.weight.requires_grad_(False)
    inner.norm.weight.grad = torch.full_like(inner.norm.weight, 0.25)
    inner.block.register_forward_hook(lambda *_: None)
    inner.norm.register_forward_pre_hook(lambda *_: None)
    return module, meter


@every
def test_nothing_is_left_behind_after_success(name: str) -> None:
    module, meter = lived_in()
    before = state(module)
    explained(name, module)
    assert state(module) == before
    assert meter.calls["forth"] or not subject(name).models


@every
@pytest.mark.parametrize("problem", [RuntimeError, pytest.param(KeyboardInterrupt, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["forth", "back"])
def test_nothing_is_left_behind_where_passes_fail(name: str, way: str, problem: type[BaseException]) -> None:
    module, meter = lived_in()
    before, expected = state(module), explained(name, module)
    meter.problem = problem
    passes, told = meter.calls[way], 0
    for k in sorted({*range(1, passes + 1, max(1, passes // 20)), passes} - {0}):  # of many a choice
        meter.calls.clear()
        meter.fail_from = (way, k)
        try:
            result = explained(name, module)
        except KeyboardInterrupt:
            assert problem is KeyboardInterrupt
            told += 1
        except XaiError as stop:
            said = refused(stop)
            assert problem is RuntimeError
            assert "the power went out" in said
            told += 1
        else:
            assert problem is RuntimeError
            if name in MAPPERS:  # only a health check failed, and the record goes without it
                assert content(result)[1] == content(expected)[1]
                assert len(result.verdicts) < len(expected.verdicts)
            else:  # it goes on without that picture, and says so
                assert any("the power went out" in str(vars(panel)) for panel in result.panels)
                told += 1
        assert state(module) == before
    assert told or not passes
    assert passes or name not in MAPPERS or (way == "back" and "gradients" not in CLASSES[name].needs)
    meter.fail_from = None
    assert content(explained(name, module)) == content(expected)


@every_mapper
def test_nothing_is_left_behind_after_a_target_that_fails(name: str) -> None:
    module, _ = lived_in()
    before, asked = state(module), []

    def broken(output: Tensor) -> Tensor:
        asked.append(len(output))
        raise ZeroDivisionError("no such score")

    made = subject(name, model(module), targets=as_targets(broken))
    try:
        result = analyzer(name)(made)
    except ZeroDivisionError:
        assert asked
    except XaiError as problem:
        refused(problem)
    else:
        assert not asked
        assert maps(result)
    assert state(module) == before


# --- cost ---
@every
def test_the_planned_cost_is_the_counted_cost_and_what_the_network_saw(name: str) -> None:
    meter = Meter()
    made = subject(name, model(Metered(net(), meter)), images(3))
    planned = analyzer(name).cost(made)
    cold = passes(analyzer(name)(made))
    meter.passes.clear()
    warm = passes(analyzer(name)(made))  # the resolver has been asked: all passes are the method's and the checks'
    assert warm == cold
    if name in MAPPERS and not CLASSES[name].upper:
        assert (planned.forwards, planned.backwards) == warm[:2]
    else:
        assert planned.forwards >= warm[0]
        assert planned.backwards >= warm[1]
    if len(made.models) == 1:
        seen, counted = (meter.passes["forth"], meter.passes["back"]), (warm[0] + warm[2], warm[1] + warm[3])
        assert seen == counted or (issubclass(CLASSES[name], Metric) and seen[0] > counted[0] and seen[1] == counted[1]
                                   and (seen[0] - counted[0]) % 3 == 0)  # a network drawn anew is folded and compared


def passes(result: Result) -> tuple[int, int, int, int]:
    """Forwards, backwards, and those of the checks."""
    cost = result.cost
    return cost.forwards, cost.backwards, cost.check_forwards, cost.check_backwards


@every_mapper
@pytest.mark.parametrize("target", ["top1", "top2", "bee - ant"])
def test_the_plan_is_what_the_run_counts(name: str, target: str) -> None:
    made = model()
    ask = Ask(models=(made,), images=(images(3),), methods=(name,), target=target, settings=settings(name))
    shared, *rows = plan(ask).rows
    assert (made.cost.forwards, made.cost.backwards) == (1, 0), "one picture is run, to see whether the target fits"
    made.cost.forwards = 0
    try:
        results = run.run(ask).results
    except XaiError as problem:  # a method may refuse a contrast, not a class
        refused(problem)
        assert " - " in target
        return
    counted = [passes(result) for result in results]
    whole = analyzer(name).cost(Subject((made,), images(3), as_targets(target)))
    assert whole.forwards == shared.forwards + sum(row.forwards for row in rows)
    assert whole.backwards == sum(row.backwards for row in rows)
    spent = counted[:1] if CLASSES[name].shares else counted  # what is shared stands in full in each record
    assert made.cost.forwards == shared.forwards + sum(one[0] - shared.forwards + one[2] for one in spent)
    assert made.cost.backwards == sum(one[1] + one[3] for one in spent)
    for row, result, one in zip(rows, results, counted, strict=True):
        free = CLASSES[name].shares and row is not rows[0]
        told = (shared.forwards + row.forwards, row.backwards) if not free else one[:2]
        checks = 0 if free else one[2] + one[3]
        assert row.target == result.target
        assert row.checks == checks or (CLASSES[name].upper and row.checks >= checks)
        assert (row.forwards, row.backwards) == (0, 0) or not free
        assert told == one[:2] or (CLASSES[name].upper and all(a >= b for a, b in zip(told, one[:2], strict=True)))
    if CLASSES[name].shares:
        assert len(set(counted)) == 1


# --- refusals ---
@every
def test_a_missing_capability_gives_the_sentence_and_the_declared_ones_suffice(name: str) -> None:
    needs = CLASSES[name].needs & CAPABILITIES
    for missing in sorted(needs - {"forward"}):
        refused_for(missing, name, model(capabilities=CAPABILITIES - {missing}, spec="lame:net"))
    bare = Model(forward=net(), mean=[0.4] * 3, std=[0.3] * 3, size=SIZE, spec="lame:net")
    if needs - {"forward"}:
        refused_for(min(needs - {"forward"}), name, bare)
    judge = {"of": "random,sobel"} if "of" in analyzer(name).parameters() else {}  # which ask for nothing
    if subject(name).models and not needs - {"forward"} and "weights" not in CLASSES[name].needs:
        assert dataclasses.replace(analyzer(name), **judge)(subject(name, bare)).panels
    enough = dataclasses.replace(analyzer(name), **judge)(subject(name, model(capabilities=needs | {"forward"})))
    if judge or ("layer" in analyzer(name).parameters() and "hooks" not in needs):  # it reads a layer if there is one
        assert enough.panels
    elif needs - {"forward"} or name not in MAPPERS:
        assert content(enough)[1] == content(explained(name))[1]
    else:  # how many inputs a forward takes is not known without hooks
        agree(enough, explained(name))


def refused_for(missing: str, name: str, made: Model) -> None:
    with pytest.raises(XaiError) as told:
        analyzer(name)(subject(name, made))
    said = refused(told.value)
    assert "lame:net" in said
    assert WANTS[missing] in said
    assert "Use a method " in said


@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_network_without_attention_gives_the_sentence(name: str) -> None:
    with pytest.raises(XaiError) as told:
        analyzer(name)(subject(name, model(Net("pooled", "module").eval(), spec="lame:net")))
    said = refused(told.value)
    assert "got lame:net, in which no self-attention is seen" in said
    assert "Use gradcam" in said


@every
def test_missing_pictures_give_the_sentence(name: str) -> None:
    made = subject(name)
    if made.images is None:
        assert analyzer(name)(made).panels
        return
    with pytest.raises(XaiError) as told:
        analyzer(name)(dataclasses.replace(made, images=None))
    refused(told.value)


# --- health ---
@dataclass(frozen=True)
class Broken:
    """A way to break a network, so that no map can tell anything about its pictures."""

    name: str
    parts: tuple[str, ...]
    value: float

    def __call__(self) -> nn.Module:
        module = net()
        with torch.no_grad():
            for name, value in module.named_parameters():
                if name.startswith(self.parts):
                    value.fill_(self.value)
        return module


BROKEN = [
    Broken("all weights are zero", ("",), 0.0),
    Broken("the head's weights are zero", ("head",), 0.0),
    Broken("all ReLUs of the last layer are dead", ("block.norm2.bias",), -1e4),
    Broken("the first weights are not numbers", ("stem.weight",), float("nan")),
    Broken("the head's weights are not numbers", ("head",), float("nan")),
    Broken("all weights are not numbers", ("",), float("nan")),
    Broken("the first weights are infinite", ("stem.weight",), float("inf")),
]


@every
@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_no_map_of_a_broken_network_passes_silently(name: str, broken: Broken) -> None:
    if not subject(name).models:
        return
    try:
        result = explained(name, broken(), evidence="quick")
    except XaiError as problem:
        refused(problem)
        return
    failed = {v.picture for v in result.verdicts if not v.passed}
    if name in MAPPERS:
        check_verdicts(result)
        assert {image.hash for image in result.images} <= failed
        assert result.images
    elif not all(np.isfinite(a).all() for a in result.record()[1].values() if a.dtype.kind == "f"):
        assert failed


class Everywhere(nn.Module):
    """Pointwise, pooled, with a tame nonlinearity or none: no place counts for more than another."""

    def __init__(self, curved: bool) -> None:
        super().__init__()
        self.point, self.curved, self.head = nn.Conv2d(3, 6, 1), curved, nn.Linear(6, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(x)
        return self.head((x.relu() if self.curved else x).mean((2, 3)))


def cases() -> Iterator[tuple[str, Callable[[], nn.Module], float | None]]:
    """Networks and pictures of which some methods have flat maps and others do not."""
    yield "a sound network", net, None
    yield "pointwise", lambda: Everywhere(True), None
    yield "linear and pointwise", lambda: Everywhere(False), None
    yield "pointwise on black", lambda: Everywhere(True), 0.0
    yield "a sound network on black", net, 0.0
    yield "a sound network on grey", net, 0.5


@every_mapper
@pytest.mark.parametrize(("make", "level"), [c[1:] for c in cases()], ids=[c[0] for c in cases()])
def test_a_flat_map_is_called_flat_and_no_other(name: str, make: Callable[[], nn.Module], level: float | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = make()
    try:
        result = explained(name, module, pictures=images(2 if level is None else 1, level))
    except XaiError as problem:
        refused(problem)
        assert level is not None or not isinstance(module, Net)
        return
    check_verdicts(result)
    if isinstance(module, Net) and level is None:
        assert not any(flat(values) for key, values in maps(result).items() if not exact(key[1], values))
        assert {v.picture for v in result.verdicts if v.passed} == {image.hash for image in result.images}


def test_the_catalog_has_maps_to_test() -> None:
    assert len(MAPPERS) >= 10
