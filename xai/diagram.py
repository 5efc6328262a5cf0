"""A model as a diagram of blocks and named axes, from one forward that is watched: plain data, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from xai import seeds
from xai.circuit import Box, Diagram, Flow, Stage
from xai.drafts import Draft, Drafting, heads_of, kind_of, signature, steps_of
from xai.errors import error
from xai.model import Model
from xai.steps import Call, Record, record
from xai.wires import Bundle, shown, wiring

MAIN = 40  # boxes of the whole network, beyond which less is opened
DRAWN = 200  # boxes of one flow at most: what is beyond stands in one box that says so
OPENED = 8  # kinds of block that are opened


def diagram(model: Model, size: tuple[int, int] | None = None) -> Diagram:
    """The blocks of a model, the tensors between them with their axes, parameters and multiply-adds.

    size: (height, width) of the picture in place of the model's own. One forward of one picture of seeded noise in eval
    mode. What is counted, and that all sums are exact, stands at `xai.circuit.Diagram`. What no Python code of the
    network does (compiled parts) appears as boxes whose inside is unknown.

    Raises XaiError for a model whose layers cannot be looked at, and one that cannot run such a picture.
    Reference: axes as wires, after Abbott, "Neural Circuit Diagrams", TMLR 2024 (arXiv:2402.05424).
    """
    model.need("hooks")
    example = model.example() if size is None else _noise(model, size)
    with model.opened() as module:
        seen: Record = model.told(lambda: record(module, example), example)
        owners = _owners(module)
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    if not any(step.live for step in seen.steps):
        raise error("the model", "one whose steps can be watched", f"{model.spec}, of which none was seen",
                    "Look at it by `xai models info`, or load the network's own code and weights")
    return _Assembly(seen, sizes, owners).diagram(model.spec)


def _noise(model: Model, size: tuple[int, int]) -> Tensor:
    shape = (1, model.preprocessing.channels, *size)
    return torch.randn(shape, generator=seeds.generator(0, "example")).to(model.device, model.dtype)


def _owners(module: nn.Module) -> dict[str, str]:
    """Parameter -> the module that has it, both by name; shared ones once."""
    return {name: name.rpartition(".")[0] for name, _ in module.named_parameters()}


class _Assembly:
    def __init__(self, seen: Record, sizes: dict[str, int], owners: dict[str, str]) -> None:
        self._seen, self._sizes, self._owners = seen, sizes, owners
        self._blocks: list[Flow] = []
        self._known: dict[object, int] = {}  # structure of a block -> its place in the diagram
        self._same: dict[int, list[str]] = {}
        self._queue: list[tuple[int, Call]] = []
        self._missing: set[object] = set()

    def diagram(self, name: str) -> Diagram:
        root = self._seen.root
        drafting = Drafting(self._seen)
        drafts = drafting.drafts(root)
        for loose, deep in ((False, True), (True, True), (True, False)):
            if len(drafts) > MAIN:
                drafting = Drafting(self._seen, crossing=False, loose=loose, deep=deep)
                drafts = drafting.drafts(root)
        flow = self._flow(root, drafting, drafts, self._sizes)
        while self._queue:
            place, call = self._queue.pop(0)
            inside = Drafting(self._seen, everything=True)
            parts = inside.drafts(call)
            if len(parts) > MAIN:
                inside = Drafting(self._seen, crossing=False, deep=False)
                parts = inside.drafts(call)
            self._blocks[place] = self._flow(call, inside, parts, self._read_in(call))
        blocks = tuple(replace(block, same=tuple(self._same[i])) for i, block in enumerate(self._blocks))
        total = sum(self._sizes.values())
        notes = (f"{len(self._missing)} more kinds of block are not opened here.",) if self._missing else ()
        return Diagram(name, kind_of(root), total, sum(s.multiply_adds for s in self._seen.steps),
                       total - sum(box.parameters for box in flow.boxes), flow, blocks, notes)

    def _read_in(self, call: Call) -> dict[str, int]:
        """The parameters that a block holds or reads."""
        read = {name for step in steps_of(call) for name in step.parameters}
        return {name: size for name, size in self._sizes.items()
                if name in read or _under(self._owners[name], call.name)}

    # --- one flow ---
    def _flow(self, call: Call, drafting: Drafting, drafts: list[Draft], sizes: dict[str, int]) -> Flow:
        if len(drafts) > DRAWN:
            drafts = _shortened(drafts)
        place = {id(draft): i for i, draft in enumerate(drafts)}
        outside: dict[int, tuple[Bundle, tuple[int, ...]]] = {}
        own = self._allotted(drafts, sizes)
        made = _given_on(drafts, self._seen)
        boxes = []
        for i, draft in enumerate(drafts):
            mine = {s.index for s in draft.steps}
            given = {drafting.source(r): g for s in draft.live for r, g in zip(s.reads, s.given, strict=True)
                     if drafting.source(r) not in mine}
            for producer, read in draft.reads:
                if producer is None and read in given:
                    outside.setdefault(read, given[read])
            inputs = list(outside)
            reads = [(place.get(id(p), 0) if p is not None else -1 - inputs.index(r), given[r])
                     for p, r in draft.reads if r in given]
            boxes.append(Box(
                draft.name, draft.kind, draft.role, " · ".join([*draft.notes, *_remarks(draft)]), draft.count,
                sum(sizes[name] for name in own[i]), sum(s.multiply_adds for s in draft.steps),
                tuple(r for r, _ in reads), tuple(shown(*g) for _, g in reads), shown(*made[i]),
                _mixed(draft), self._inside(draft),
                wiring(reads[0][1][0], made[i][0]) if reads and draft.role == "rearrange" else ()))
        end = self._seen.output if call is self._seen.root else -1
        last = next((i for i, d in enumerate(drafts) if drafting.source(end) in {s.index for s in d.steps}),
                    len(drafts) - 1) if end >= 0 else len(drafts) - 1
        return Flow(call.name, kind_of(call), tuple(shown(*g) for g in outside.values()), tuple(boxes),
                    tuple(_stages(drafts, boxes)), last)

    def _allotted(self, drafts: Sequence[Draft], sizes: Iterable[str]) -> list[set[str]]:
        """The parameters of each box: by who reads them first, else by which module holds them."""
        reader = {name: i for i, draft in reversed(list(enumerate(drafts)))
                  for step in reversed(draft.live) for name in step.parameters}
        holder = {call.name: i for i, draft in reversed(list(enumerate(drafts))) for call in draft.calls if call.name}
        own: list[set[str]] = [set() for _ in drafts]
        for name in sizes:
            place = reader.get(name)
            module = self._owners[name]
            while place is None and module:
                place = holder.get(module)
                module = module.rpartition(".")[0]
            if place is not None:
                own[place].add(name)
        return own

    def _inside(self, draft: Draft) -> int | None:
        """Where the block is opened; asks for that the first time."""
        if draft.role != "block" or not draft.calls:
            return None
        call = draft.calls[0]
        key = signature(call)
        if key not in self._known:
            if len(self._blocks) >= OPENED:
                self._missing.add(key)
                return None
            self._known[key] = len(self._blocks)
            self._same[len(self._blocks)] = []
            self._queue.append((len(self._blocks), call))
            self._blocks.append(Flow(call.name, kind_of(call), (), (), (), 0))
        found = self._known[key]
        self._same[found] += [c.name for c in draft.calls
                              if c.name != self._blocks[found].name and c.name not in self._same[found]]
        return found


def _under(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _given_on(drafts: Sequence[Draft], seen: Record) -> list[tuple[Bundle, tuple[int, ...]]]:
    """The tensor that each box gives: its last, or, of a change of axes that gives several, the first that is read."""
    first: dict[int, int] = {}
    for draft in drafts:
        for producer, step in draft.reads:
            if producer is not None and producer.role == "rearrange":
                first.setdefault(id(producer), step)
    return [seen.steps[first[id(d)]].made if id(d) in first else d.last.made for d in drafts]


def _shortened(drafts: list[Draft]) -> list[Draft]:
    """The first and the last boxes, and one for what is between them."""
    half = DRAWN // 2
    cut = drafts[half:-half]
    rest = Draft("", f"{len(cut)} further boxes", "opaque", [s for d in cut for s in d.steps],
                 [c for d in cut for c in d.calls], (), ["not drawn"])
    gone = {id(d) for d in cut}
    for draft in drafts[-half:]:
        draft.reads = [(rest if p is not None and id(p) in gone else p, s) for p, s in draft.reads]
    rest.reads = [(p, s) for d in cut for p, s in d.reads if p is None or id(p) not in gone]
    return [*drafts[:half], rest, *drafts[-half:]]


def _remarks(draft: Draft) -> list[str]:
    """What of a block's inside is worth knowing from outside."""
    if draft.role != "block":
        return []
    heads, live = heads_of(draft.steps), draft.live
    said = [f"{heads} heads"] if heads else []
    met = {s.name for s in live if len(s.reads) > 1}
    said += ["+ shortcut"] * ("add" in met) + ["concatenates"] * bool(met & {"cat", "concat"})
    return said + ["gated"] * ("mul" in met)


def _mixed(draft: Draft) -> tuple[int, ...]:
    """The axes of a box's output that it does not merely repeat itself over."""
    if draft.role == "opaque":
        return tuple(range(1, len(draft.last.made[1])))
    if draft.role != "block" and all(len(s.made[1]) == len(draft.last.made[1]) for s in draft.live):
        return tuple(sorted({axis for step in draft.live for axis in step.acts}))
    before = {id(atom) for step in draft.live for bundle, _ in step.given for wire in bundle for atom in wire}
    touched = {id(atom) for step in draft.live for axis in step.acts for atom in step.made[0][axis]}
    made = draft.last.made[0]
    return tuple(i for i, wire in enumerate(made) if any(id(a) in touched or id(a) not in before for a in wire))


def _stages(drafts: Sequence[Draft], boxes: Sequence[Box]) -> list[Stage]:
    """The innermost opened module of neighbours that share one."""
    found: list[Stage] = []
    first = 0
    while first < len(drafts):
        frame = drafts[first].frames[-1] if drafts[first].frames else None
        last = first
        while last + 1 < len(drafts) and frame is not None and drafts[last + 1].frames[-1:] == (frame,):
            last += 1
        part = boxes[first : last + 1]
        if frame is not None and (len(part) > 1 or part[0].count > 1):
            blocks = sum(box.count for box in part if box.role == "block")
            found.append(Stage(frame.name, kind_of(frame), first, last, blocks,
                               sum(b.parameters for b in part), sum(b.multiply_adds for b in part)))
        first = last + 1
    return found

