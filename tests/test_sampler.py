"""The floor under the perturbation methods: what is asked, in which pieces, and how its answer is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.gradient_nets import batch_of, conv_net, made, pictures
from xai import catalog, run
from xai.attribution import Attribution
from xai.batch import Batch
from xai.errors import OutOfMemory, XaiError
from xai.images import load_images
from xai.model import Model
from xai.modules import disinferred
from xai.pace import GAIN, TRIES, Pace, fitting
from xai.panels import Heatmap
from xai.sampler import Sampler, log_odds, shown
from xai.targets import Bound, Target
from xai.zoo.loading import load

FORWARD_ONLY = [name for name in sorted(catalog.entries())
                if issubclass(catalog.find(name), Attribution) and "forward" in catalog.find(name).needs]  # fmt: skip


def sampler(model: Model, value: str = "logit", targets: tuple[str, ...] = ("class:1",), n: int = 1) -> Sampler:
    batch = batch_of(model, pictures(2, channels=model.preprocessing.channels), chunk=8)
    return Sampler(batch, n, [batch.bind(Target(text)) for text in targets], value)


# --- how many at a time ---
def paced(pace: Pace, times: dict[int, float], waiting: int = 100_000) -> list[int]:
    """The sizes that the pace asks for, each taking the given seconds, until it has stopped searching."""
    asked: list[int] = []
    for _ in range(40):
        size = pace.size(waiting)
        asked.append(size)
        pace.took(size, times[size])
    return asked


def test_the_search_tries_four_sizes_on_the_job_and_keeps_the_fastest() -> None:
    pace = Pace(8, 64)
    asked = paced(pace, {8: 8.0, 16: 12.0, 4: 6.0, 32: 30.0})
    assert asked[: 4 * TRIES] == [8] * TRIES + [16] * TRIES + [4] * TRIES + [32] * TRIES
    assert set(asked[4 * TRIES :]) == {16}


def test_the_first_forward_of_a_size_does_not_count() -> None:
    pace = Pace(1, 2)
    for size, seconds in [(1, 9.0), (1, 1.0), (1, 1.0), (2, 50.0), (2, 1.0), (2, 1.0)]:
        assert pace.size(1000) == size
        pace.took(size, seconds)
    assert pace.size(1000) == 2


@pytest.mark.parametrize(("share", "kept"), [(GAIN - 0.01, 16), (GAIN + 0.01, 8)])
def test_another_size_must_be_clearly_faster(share: float, kept: int) -> None:
    pace = Pace(8, 16)
    paced(pace, {8: 8.0, 16: 16.0 * share, 4: 8.0})
    assert pace.best == kept


def test_few_inputs_or_a_fixed_size_are_not_searched() -> None:
    assert set(paced(Pace(8, 64, fixed=True), {8: 1.0})) == {8}
    assert set(paced(Pace(8, 64), {8: 1.0}, waiting=50)) == {8}
    assert Pace(8, 64).size(3) == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.lists(st.integers(1, 300), max_size=30))
def test_no_size_goes_beyond_what_fits(start: int, most: int, waiting: list[int]) -> None:
    pace = Pace(start, most)
    for count in waiting:
        size = pace.size(count)
        assert 1 <= size <= min(count, pace.most)
        pace.took(size, float(size))
    pace.short(pace.best)
    assert pace.size(1000) <= max(1, pace.best)


def test_a_forward_stays_within_its_memory() -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert fitting(1 << 20, 10 << 20, 300 << 20, cpu) == (10, 10)  # three times all activations
    assert fitting(8 << 20, 10 << 20, 1 << 40, cpu)[0] == 4  # each activation under 32 MiB
    assert fitting(8 << 20, 10 << 20, 1 << 40, card)[0] == 32
    assert fitting(1 << 40, 1 << 40, 1, cpu) == (1, 1)


class Tight(nn.Module):
    """Fails like an allocator where more than `most` inputs come at once."""

    def __init__(self, most: int, problem: type[BaseException] = MemoryError) -> None:
        super().__init__()
        self.net, self.most, self.problem = conv_net(), most, problem
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
            raise self.problem(said)
        self.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("problem", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_where_memory_runs_out_the_chunk_is_halved_and_nothing_is_lost(problem: type[BaseException]) -> None:
    tight = Tight(3, problem)
    model = made(tight)
    batch = batch_of(model, pictures(1), chunk=20)
    asker = Sampler(batch, 0, [batch.bind(Target("class:1"))])
    codes = torch.arange(23.0, dtype=torch.float64)
    found = list(asker.ask([codes[:21], codes[21:]], lambda c, out: out.copy_(asker.x * c[:, None, None, None])))
    assert [len(a.codes) for a in found] == [2] * 10 + [1, 2]
    assert torch.equal(torch.cat([a.codes for a in found]), codes)
    with torch.no_grad():
        expected = tight.net(asker.x * codes[:, None, None, None])[:, 1:2]
    assert_close(torch.cat([a.scores for a in found]), expected, rtol=1e-12, atol=1e-12)
    assert model.cost.forwards == 1 + 23, "the tries that failed are not counted"


def test_one_input_too_many_for_the_memory_is_told() -> None:
    model = made(Tight(1))
    batch = batch_of(model, pictures(1), chunk=2)
    asker = Sampler(batch, 0, [batch.bind(Target("class:1"))])
    model.fast.module.most = 0  # type: ignore[assignment]  # its own field
    with pytest.raises(OutOfMemory, match=r"the memory must be enough for 1 pictures of \(3, 6, 6\); got too little"):
        asker.scores(pictures_tensor(batch))


def pictures_tensor(batch: Batch) -> Tensor:
    return batch.inputs[:1].repeat(2, 1, 1, 1)


def test_what_a_forward_in_inference_mode_leaves_behind_can_take_a_gradient() -> None:
    class Caching(nn.Module):
        """Keeps the places of an input of that size, as position embeddings do."""

        def __init__(self) -> None:
            super().__init__()
            self.places: Tensor | None = None
            self.table: dict[str, Tensor] = {}
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            if self.places is None:
                self.places = torch.linspace(1, 2, x.shape[-1]).to(x)
                self.table["again"] = self.places * 2
            return self.head((x * self.places * self.table["again"]).mean((2, 3)))

    model = made(Caching())
    model.infer(torch.rand(2, 3, 6, 6))
    batch = batch_of(model, pictures(1))
    assert batch.input_gradient(batch.inputs, batch.bind(Target("class:1")))[1].abs().max() > 0
    module = nn.Identity()
    with torch.inference_mode():
        module.kept = torch.ones(2)
    disinferred(module)
    assert not module.kept.is_inference()


# --- how an answer is read ---
def numbers(model: Model, value: str, targets: tuple[str, ...]) -> tuple[Tensor, Tensor, Sampler]:
    """Scores of two forms of the second picture as read, and the raw output for them."""
    asker = sampler(model, value, targets)
    forms = torch.stack([asker.x, asker.x.flip(2) * 0.7])
    return asker.scores(forms), model(forms), asker


def test_a_score_is_a_logit_a_probability_or_the_log_odds() -> None:
    model = made(conv_net())
    targets = ("class:1", "class:0", "class:2 - class:3")
    raw = numbers(model, "logit", targets)[1]
    p = raw.softmax(1)
    odds = (p / (1 - p)).log()
    for value, table in (("logit", raw), ("probability", p), ("log_odds", odds)):
        scores, _, asker = numbers(model, value, targets)
        expected = torch.stack([table[:, 1], table[:, 0], table[:, 2] - table[:, 3]], 1)
        assert_close(scores, expected, rtol=1e-9, atol=1e-9)
        assert_close(asker.here, expected[0], rtol=1e-9, atol=1e-9)
        assert asker.unit == value.replace("_", "-")


def test_the_log_odds_of_an_all_but_certain_class_are_not_infinite() -> None:
    logits = torch.tensor([[60.0, 1.0, 0.0], [0.0, 1.0, -300.0]])
    exact = logits.double()
    others = torch.stack([exact[:, [j for j in range(3) if j != c]].logsumexp(1) for c in range(3)], 1)
    assert_close(log_odds(logits), (exact - others).float(), rtol=1e-5, atol=1e-5)


def test_what_is_no_class_gives_its_raw_score() -> None:
    regression = Model(nn.Sequential(nn.Flatten(), nn.Linear(108, 1)), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    scores, raw, asker = numbers(regression, "probability", ("top1",))
    assert asker.unit == "score"
    assert_close(scores, raw.double())
    model = made(conv_net())
    batch = batch_of(model, pictures(1))

    def doubled(output: Tensor) -> Tensor:
        return 2 * output[:, 1]

    asker = Sampler(batch, 0, [Bound(doubled, ("doubled",))], "probability")
    assert asker.unit == "score"
    assert_close(asker.here, 2 * batch.output()[:, 1].double())


def test_a_multi_label_head_gives_sigmoids_and_its_logits_are_log_odds() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).double()
    model = Model(net, mean=[0.4] * 3, std=[0.3] * 3, size=6, head="multi-label")
    assert_close(*[f(numbers(model, "probability", ("class:1",))) for f in (
        lambda n: n[0], lambda n: n[1][:, 1:2].sigmoid())], rtol=1e-9, atol=1e-9)  # fmt: skip
    assert_close(*[f(numbers(model, "log_odds", ("class:1",))) for f in (
        lambda n: n[0], lambda n: n[1][:, 1:2])], rtol=1e-9, atol=1e-9)  # fmt: skip


def test_scores_do_not_depend_on_which_others_are_asked_for() -> None:
    model = made(conv_net(), precision="float32")
    alone = numbers(model, "probability", ("class:1",))[0]
    together = numbers(model, "probability", ("class:3", "class:1", "class:0"))[0]
    assert torch.equal(alone[:, 0], together[:, 1])


# --- what is shown ---
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**30))
def test_hidden_segments_show_the_fill_and_shown_ones_the_picture_to_the_bit(count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, fill = torch.randn(2, 5, 7, generator=g), torch.randn(2, 1, 1, generator=g).expand(2, 5, 7)
    labels = torch.randint(count, (5, 7), generator=g)
    codes = torch.cat([torch.ones(1, count), torch.zeros(1, count), torch.randint(2, (4, count), generator=g)])
    out = torch.empty(6, 2, 5, 7)
    shown(x, fill, labels)(codes, out)
    assert torch.equal(out[0], x)
    assert torch.equal(out[1], fill)
    for z, form in zip(codes, out, strict=True):
        assert_close(form, torch.where(z[labels].bool(), x, fill), rtol=0, atol=1e-6)


def test_half_shown_lies_half_way() -> None:
    x, fill, out = torch.full((1, 2, 2), 3.0), torch.ones(1, 2, 2), torch.empty(1, 1, 2, 2)
    shown(x, fill, torch.tensor([[0, 1], [1, 0]]))(torch.tensor([[0.5, 0.25]]), out)
    assert_close(out[0, 0], torch.tensor([[2.0, 1.5], [1.5, 2.0]]))


# --- whole methods on real networks ---
@pytest.fixture(scope="module")
def photo20() -> Model:
    return load("xai:photo20", device="cpu")


def few(name: str, model: Model) -> dict[str, str]:
    """256 samples, or 16 where a sample stands for many forwards."""
    if "samples" not in catalog.find(name)().parameters():
        return {}
    many = catalog.find(name)(samples=256).passes(model).forwards > 1000
    return {f"{name}.samples": "16" if many else "256"}


def heat(model: Model, name: str, chunk: int | None, **more: Any) -> Iterator[tuple[str, Tensor]]:
    result = run.explain(model, load_images(["sample:coffee"]), name, chunk=chunk, settings=few(name, model),
                         **more).result
    for panel in result.panels:
        if isinstance(panel, Heatmap):
            yield panel.key, torch.as_tensor(panel.values)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ("sobol", "shap_partition")
                                  else name for name in FORWARD_ONLY])
def test_a_map_is_the_same_whatever_the_chunk(name: str, photo20: Model) -> None:
    expected = dict(heat(photo20, name, 32))
    for chunk in (1, 7, None):
        for key, values in heat(photo20, name, chunk):
            assert_close(values, expected[key], rtol=0, atol=1e-5 * float(expected[key].abs().max()))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "sobol" else n
                                  for n in FORWARD_ONLY if catalog.find(n).shares])
def test_a_map_does_not_depend_on_which_classes_are_asked_for(name: str, photo20: Model) -> None:
    first = dict(heat(photo20, name, 16, target="rank:2"))["map"]
    small = few(name, photo20)
    asked = {"chunk": 16, "settings": small, "target": "top3", "evidence": "off"}
    both = run.explain(photo20, load_images(["sample:coffee"]), name, **asked)
    before = photo20.cost.forwards
    second = next(p for p in both.results[1].panels if isinstance(p, Heatmap))
    assert_close(torch.as_tensor(second.values), first, rtol=0, atol=1e-6 * float(first.abs().max()))
    run.explain(photo20, load_images(["sample:coffee"]), name, **asked)
    spent = photo20.cost.forwards - before
    assert spent == both.results[0].cost.forwards, "three classes cost what one does"


def test_progress_is_told_in_forwards(photo20: Model) -> None:
    told: list[tuple[int, int]] = []
    run.explain(photo20, load_images(["sample:coffee"]), "rise", chunk=8, settings={"samples": "64"}, evidence="off",
                progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (65, 65)
    assert [done for done, _ in told[:-1]] == [1, *range(9, 66, 8)]


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_map(photo20: Model) -> None:
    compiled = load("xai:photo20", device="cpu")
    compiled.compiled = True
    expected = dict(heat(photo20, "rise", 10))["map"]
    for key, values in heat(compiled, "rise", 10):  # 64 = 6 * 10 + 4: the last forward is filled up
        if key == "map":
            assert_close(values, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert compiled._compiled is not None


def test_a_network_that_cannot_be_compiled_gets_a_sentence(photo20: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")
        return call

    monkeypatch.setattr(torch, "compile", broken)
    model = load("xai:photo20", device="cpu")
    model.compiled = True
    with pytest.raises(XaiError, match=r"must be one that torch.compile can build here; got .*Leave --compile out\."):
        list(heat(model, "rise", 8))


# --- what a review found ---
def test_the_search_runs_inside_a_method_whose_blocks_are_small() -> None:
    model = Model(forward=conv_net(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    run.explain(model, pictures(1), "rise", settings={"samples": "1000", "agree": "1"})
    (pace,) = model._paces.values()
    assert pace._left == []
    assert set(pace._tries) == {8, 16, 4, 32}


def test_ctrl_c_costs_one_picture_of_a_method_that_asks_each_by_itself() -> None:
    calls: list[int] = []
    net = conv_net()

    def forward(x: Tensor) -> Tensor:
        calls.append(len(x))
        if sum(calls) > 5 + 2 * 64 + 10:
            raise KeyboardInterrupt
        return net(x)

    model = Model(forward=forward, mean=[0.4] * 3, std=[0.3] * 3, size=6)
    done = run.explain(model, list(pictures(4)), "rise", settings={"samples": "64"}, out=None, chunk=4, evidence="off")
    assert done.interrupted
    assert len(done.result.images) == 2
    assert done.result.cost.forwards == 2 * 65


def test_a_fixed_chunk_is_what_every_forward_holds() -> None:
    sizes: list[int] = []

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.mean((2, 3))

    for name in FORWARD_ONLY:
        if name == "shap_partition":  # its map depends on ten at a time
            continue
        sizes.clear()
        model = Model(forward=forward, mean=[0.4] * 3, std=[0.3] * 3, size=12)
        values = {"baseline": "black"} if name in ("lime", "shap_kernel") else {}
        run.explain(model, pictures(1, size=12), name, chunk=5, settings=few(name, model) | values)
        assert max(sizes) == 5, name


def test_a_larger_input_takes_fewer_at_a_time() -> None:
    model = made(conv_net(), size=16)
    budget = 3 << 20
    small, large = (model.pace((3, n, n), budget).most for n in (16, 64))
    assert small >= 8 * large


def test_probabilities_are_not_made_probabilities_again() -> None:
    plain = made(conv_net())
    model = made(nn.Sequential(conv_net(), nn.Softmax(1)))
    batch, expected = (batch_of(m, pictures(2)) for m in (model, plain))
    assert_close(batch.scores(), expected.scores(), rtol=1e-6, atol=1e-7)
    assert "probabilities, whose logarithm is taken" in model.head.reason
    for value in ("probability", "log_odds"):
        found = [Sampler(b, 0, [b.bind(Target("class:1"))], value).here for b in (batch, expected)]
        assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_one_number_a_picture_is_a_regression_in_any_shape() -> None:
    class Number(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0, :3].mean((1, 2))

    model = Model(Number(), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    for name in ("rise", "saliency"):
        small = {"samples": "64"} if name == "rise" else {}
        result = run.explain(model, pictures(1), name, settings=small).result
        assert result.images[0].target == "the output"
        assert any(isinstance(p, Heatmap) and p.values.std() > 0 for p in result.panels)


def test_a_target_that_fails_does_not_cost_those_that_share_its_passes() -> None:
    def bad(output: Tensor) -> Tensor:
        return output[:, 99]

    done = run.explain(made(conv_net()), pictures(1), "rise", target=["class:1", bad], settings={"samples": "64"})
    assert [r.images[0].target for r in done.results] == ["class 1"]
    (failure,) = done.failures
    assert "the target bad must be one that works on an output of shape (" in failure.sentence
    assert "IndexError" in failure.sentence


def test_a_model_that_drops_pictures_gets_a_sentence() -> None:
    net = conv_net()
    model = Model(forward=lambda x: net(x[:1]), mean=[0.4] * 3, std=[0.3] * 3, size=6)
    with pytest.raises(XaiError, match=r"the model must be one that gives \d+ outputs for as many pictures; got 1\."):
        run.explain(model, pictures(1), "rise", settings={"samples": "64"})


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_score_that_is_no_number_never_passes_for_one(name: str) -> None:
    net, whole = conv_net(), torch.from_numpy(pictures(1, size=12)[0] - 0.4).abs().sum() / 0.3

    def forward(x: Tensor) -> Tensor:
        hidden = x.abs().sum((1, 2, 3)) < 0.999 * whole
        return net(x) + torch.where(hidden, torch.nan, 0.0)[:, None]

    model = Model(forward=forward, mean=[0.4] * 3, std=[0.3] * 3, size=12)
    settings = few(name, model) | ({"baseline": "zero"} if "baseline" in catalog.find(name)().parameters() else {})
    try:
        result = run.explain(model, pictures(1, size=12), name, settings=settings).result
    except XaiError:
        return
    assert any(v.name == "finite" and not v.passed for v in result.verdicts)


def test_a_model_of_the_callers_is_not_compiled_for_good() -> None:
    model = made(conv_net())
    run.explain(model, pictures(1), "saliency", compile=True)
    assert not model.compiled


@pytest.mark.parametrize("chunk", [2, 7])
def test_gradients_too_are_taken_in_halves_where_memory_is_short(chunk: int) -> None:
    roomy, tight = made(conv_net()), made(Tight(chunk))
    inputs = torch.rand(8, 3, 6, 6, dtype=torch.float64)
    found = []
    for model in (roomy, tight):
        batch = batch_of(model, pictures(1), chunk=1)
        bound = batch.bind(Target("class:1")).take([0] * 8)
        found.append((*batch.input_gradient(inputs, bound), batch.score(inputs, bound)))
    for one, two in zip(*found, strict=True):
        assert_close(two, one, rtol=1e-12, atol=1e-12)


def test_probabilities_are_seen_also_where_the_kind_of_head_is_given() -> None:
    model = Model(nn.Sequential(conv_net(), nn.Softmax(1)), mean=[0.4] * 3, std=[0.3] * 3, size=6, head="classes")
    batch = batch_of(model, pictures(2))
    with torch.no_grad():
        assert_close(batch.scores(), model._module(batch.inputs), rtol=1e-5, atol=1e-6)  # type: ignore[misc]  # there is one
