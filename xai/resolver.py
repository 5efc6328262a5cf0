"""Ask a network which layer to look at: the last spatial output that the target's gradient reaches, or a named one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xai.errors import XaiError, did_you_mean, near
from xai.heads import resolve_head
from xai.layers import LayerView
from xai.layouts import Reader, Reading, view_of
from xai.trace import Firing, Node, Trace, redrawn, trace

SMALLEST_GRID = 4
NEGLIGIBLE = 1e-9  # an effect this small, beside the largest one, is rounding noise
FLATNESS = 1e-6  # a map that varies by less than this part of its maximum is constant
_CHUNK = 12  # gradients of that many outputs are asked for at once, from the last one backwards
_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.FractionalMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_FLAT = "its class activation map is constant"
_WRAPPERS = ("_orig_mod.", "module.")


@dataclass(eq=False)
class _Candidate:
    node: Node
    firing: Firing
    reading: Reading
    verdict: str = ""  # why it is not taken; empty: it qualifies

    @property
    def view(self) -> LayerView:
        return view_of(self.firing, self.reading)


def resolve_layer(
    module: nn.Module,
    example: Tensor,
    score: Callable[[Any], Tensor],
    layer: str = "auto",
    *,
    grid: tuple[int, int] | None = None,
) -> LayerView:
    """The layer to explain, with its reason, found by one traced forward of the first picture of `example`.

    `score` maps what the network returns to (n,) target scores. "auto" takes the last output, in execution order, with
    a grid of at least 4x4 where the gradient of the score is not zero at the patch positions and which does not hold
    one channel per class already. Else `layer` names a module, or `name:call` where a module runs several times (the
    last call by default). `grid` (h, w) overrides the token grid.

    Raises XaiError if the name is unknown or without spatial extent, or if no spatial output qualifies.
    """
    with torch.inference_mode(False), torch.enable_grad():
        run = trace(module, example)
        reader = Reader(module, run, grid)
        if layer != "auto":
            return _named(module, run, reader, layer, score)
        found = _choose(module, run, reader, score(run.output)) or _choose_otherwise(module, example, run, reader)
    if found is None:
        raise XaiError(
            "The network must have a module whose output has spatial extent and is reached by the target's gradient; "
            f"got {type(module).__name__} without one. Use a method that needs no layer, such as saliency or rise."
        )
    return found


def list_layers(module: nn.Module, example: Tensor) -> list[LayerView]:
    """All spatial outputs of all modules in execution order, for one forward of the first picture of `example`."""
    run = trace(module, example)
    reader = Reader(module, run)
    listed: list[tuple[int, LayerView]] = []
    for node in run.nodes:
        reading = reader.read(node)
        if reading:
            listed += [(firing.order, view_of(firing, reading, reading.why)) for firing in node.firings]
    return [view for _, view in sorted(listed, key=lambda pair: pair[0])]


def _choose(module: nn.Module, run: Trace, reader: Reader, score: Tensor) -> LayerView | None:
    if not score.requires_grad:
        return None
    candidates = _candidates(run, reader)
    judge = _Judge(module, run, score.sum())
    preferred = [candidate for candidate in candidates if not _is_internal(candidate.node)]
    for pool in (preferred, [candidate for candidate in candidates if candidate not in preferred]):
        found = _first(pool, judge)
        if found:
            return _explained(found, pool, len(candidates))
    return None


def _choose_otherwise(module: nn.Module, example: Tensor, run: Trace, reader: Reader) -> LayerView | None:
    """Where the target's own gradient is zero: by all outputs, then with random weights for all-zero ones."""
    view = _choose(module, run, reader, _mixture(run.output))
    if view:
        return replace(view, reason=f"{view.reason}; by all outputs, as the target's own gradient is zero everywhere")
    with redrawn(module) as names:
        again = trace(module, example) if names else run
        view = _choose(module, again, Reader(module, again, reader.forced), _mixture(again.output)) if names else None
    if view:
        note = f"the weights of {', '.join(names)} are all zero and stop the gradient: found with random ones instead"
        return replace(view, reason=f"{view.reason}; {note}")
    for candidate in _candidates(run, reader):
        large = min(candidate.reading.grid) >= SMALLEST_GRID
        if large and candidate.node.tensor.requires_grad and not _is_internal(candidate.node):
            return view_of(candidate.firing, candidate.reading, "the last spatial output, but no gradient reaches any")
    return None


def _mixture(output: Any) -> Tensor:
    """A random mixture of everything that the head holds."""
    value = resolve_head(output).read(output)
    return (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)).sum()


def _first(pool: list[_Candidate], judge: _Judge) -> _Candidate | None:
    """The first that qualifies with a grid that is large enough, else the one with the largest grid."""
    small: list[_Candidate] = []
    closed: list[str] = []  # what is wrong with the output of these modules is no reason to look inside them
    for start in range(0, len(pool), _CHUNK):
        judge(pool[start : start + _CHUNK])
        for candidate in pool[start : start + _CHUNK]:
            if any(candidate.firing.name.startswith(name) for name in closed):
                continue
            if not candidate.verdict and min(candidate.reading.grid) >= SMALLEST_GRID:
                return candidate
            if candidate.verdict in ("", _FLAT):
                closed.append(candidate.firing.name + ".")
            if not candidate.verdict:
                small.append(candidate)
    return max(small, key=lambda candidate: min(candidate.reading.grid), default=None)


def _candidates(run: Trace, reader: Reader) -> list[_Candidate]:
    """Spatial outputs whose value some module returned as the network used it, the last one first."""
    found = []
    for node in reversed(run.nodes):
        reading = reader.read(node)
        if reading:
            found.append(_Candidate(node, _representative(node), reading))
    return found


def _is_internal(node: Node) -> bool:
    """A pool holds nothing new, look at what it pools; a bare projection (query, key, value) is no feature map."""
    return any(isinstance(firing.module, (*_POOLS, nn.Linear)) for firing in node.firings)


def _representative(node: Node) -> Firing:
    """Of the modules that return this tensor: the block, not its innermost part, not the list of blocks around it."""
    firings = {firing.name: firing for firing in node.last if not firing.path}
    if not firings:
        return node.last[0]
    chosen = next(iter(firings.values()))
    while "." in chosen.name:
        parent = firings.get(chosen.name.rsplit(".", 1)[0])
        if parent is None or type(parent.module) is nn.Sequential:
            break
        chosen = parent
    return chosen


class _Judge:
    """Says of candidates, by the gradient of the target score at them, whether they qualify."""

    def __init__(self, module: nn.Module, run: Trace, scalar: Tensor) -> None:
        self._run = run
        self._scalar = scalar
        self._classes = getattr(module, "num_classes", None) != 0  # timm's way to say that there is no classifier
        self._largest = 0.0

    def __call__(self, chunk: list[_Candidate]) -> None:
        """Set each candidate's verdict; one backward for all of them."""
        gradients = _gradients(self._scalar, [candidate.node for candidate in chunk])
        for candidate, gradient in zip(chunk, gradients, strict=True):
            candidate.verdict = self._verdict(candidate, gradient)

    def _verdict(self, candidate: _Candidate, gradient: Tensor | None) -> str:
        if gradient is None:
            return "the target's gradient does not reach it"
        view = candidate.view
        slopes, values = view.to_map(gradient), view.to_map(candidate.node.tensor.detach())
        if not (torch.isfinite(slopes).all() and torch.isfinite(values).all()):
            return "its values or gradients are not finite"
        effect = float((slopes * values).abs().sum())
        self._largest = max(self._largest, effect)
        if effect <= NEGLIGIBLE * self._largest:
            return "the target's gradient is zero at its positions"
        if self._holds_classes(candidate):
            return "it already holds one channel per class"
        raw = (slopes.mean(dim=(2, 3), keepdim=True) * values).sum(dim=1)
        if float(raw.max() - raw.min()) <= FLATNESS * float(raw.abs().max()):
            return _FLAT
        return ""

    def _holds_classes(self, candidate: _Candidate) -> bool:
        """Whether channel c of the map leads to class c and no other: then it is a map of scores, not of features."""
        head = resolve_head(self._run.output)
        maps = head.kind in ("map", "image")
        if not (self._classes and (maps or head.kind == "classes")) or head.size != candidate.reading.channels:
            return False
        scores = head.read(self._run.output)[0].flatten(1 if maps else 0)
        scores = scores.sum(1) if maps else scores
        best = int(scores.argmax())
        (gradient,) = _gradients(scores[best], [candidate.node])
        if gradient is None:
            return False
        channels = candidate.view.to_map(gradient).abs().sum(dim=(0, 2, 3)).nonzero().flatten().tolist()
        return channels in ([best], [])


def _gradients(scalar: Tensor, nodes: list[Node]) -> list[Tensor | None]:
    """The gradient at each node's tensor, None where there is none."""
    tensors = [node.tensor for node in nodes if node.tensor.requires_grad]
    found = iter(torch.autograd.grad(scalar, tensors, retain_graph=True, allow_unused=True) if tensors else ())
    return [next(found) if node.tensor.requires_grad else None for node in nodes]


def _explained(candidate: _Candidate, pool: list[_Candidate], count: int) -> LayerView:
    reason = f"the last one, of {count} spatial outputs, that the target's gradient reaches"
    skipped = [other for other in pool[: pool.index(candidate)] if other.verdict]
    if skipped:
        verdicts = dict.fromkeys(other.verdict for other in skipped)
        names = ", ".join(other.firing.name for other in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        reason += f"; later ones ({names}) were skipped: {' or '.join(verdicts)}"
    if min(candidate.reading.grid) < SMALLEST_GRID:
        reason += f"; no grid of {SMALLEST_GRID}x{SMALLEST_GRID} or more qualifies"
    if candidate.reading.why:
        reason += f"; {candidate.reading.why}"
    return view_of(candidate.firing, candidate.reading, reason)


def _named(module: nn.Module, run: Trace, reader: Reader, layer: str, score: Callable[[Any], Tensor]) -> LayerView:
    name, call = _split_call(layer)
    own = {child: own for own, child in module.named_modules()}
    known = {_plain(alias): own[child] for alias, child in module.named_modules(remove_duplicate=False) if alias}
    if _plain(name) not in known:
        raise XaiError(
            f"The layer must be a module of the network; got {layer!r}. "
            f"{did_you_mean(name, known) or 'See the names with `xai models info`.'}"
        )
    name = known[_plain(name)]
    spatial = [(node, firing, reader.read(node)) for node in run.nodes for firing in node.firings]
    calls = [(node, firing, reading) for node, firing, reading in spatial if firing.name == name and reading]
    wanted = [item for item in calls if call is None or item[1].call == call]
    if not wanted:
        raise _not_spatial(layer, name, call, run, spatial)
    node, firing, reading = max(wanted, key=lambda item: (item[1].call, -item[1].order))
    assert reading is not None
    candidate = _Candidate(node, firing, reading)
    scalar = score(run.output).sum()
    verdict = "the output has no gradient"
    if scalar.requires_grad:
        _Judge(module, run, scalar)([candidate])
        verdict = candidate.verdict
    parts = ["chosen by name", f"but {verdict}" if verdict else "", reading.why]
    return view_of(firing, reading, "; ".join(part for part in parts if part))


def _not_spatial(
    layer: str, name: str, call: int | None, run: Trace, spatial: list[tuple[Node, Firing, Reading | None]]
) -> XaiError:
    shapes = [str(tuple(node.tensor.shape)) for node, firing, _ in spatial if firing.name == name]
    if call is not None and run.calls[name] <= call:
        got = f"{layer!r}, which runs {run.calls[name]} time(s)"
    elif not run.calls[name]:
        got = f"{layer!r}, which does not run"
    else:
        got = f"{layer!r} with shape {shapes[-1]}" if shapes else f"{layer!r}, which makes no tensor of its own"
    names = list(dict.fromkeys(firing.name for _, firing, reading in spatial if reading))
    offered = ", ".join(dict.fromkeys([*near(name, names, 2), *names[-3:]])) or "none in this network"
    return XaiError(f"The layer must have an output with spatial extent; got {got}. Spatial layers: {offered}.")


def _split_call(layer: str) -> tuple[str, int | None]:
    name, colon, call = layer.rpartition(":")
    return (name, int(call)) if colon and call.isdigit() else (layer, None)


def _plain(name: str) -> str:
    """A module's name as its author wrote it, without what torch.compile and DataParallel put before it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
