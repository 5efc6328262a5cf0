"""From the steps of a forward to the boxes of a drawing: what is opened, what shares a box, what is repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from xai.step_words import grouped
from xai.steps import Call, Record, Step
from xai.wires import name_of, shown

# The same numbers in another order or under other axes.
MOVES = frozenset({
    "view", "reshape", "permute", "transpose", "flatten", "unflatten", "getitem", "unbind", "chunk", "split", "select",
    "narrow", "squeeze", "unsqueeze", "expand", "expand_as", "T", "mT", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "split_with_sizes", "tensor_split", "view_as", "reshape_as",
})  # fmt: skip
COPIES = frozenset({
    "contiguous", "clone", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout",
    "alpha_dropout", "to", "float", "half", "type", "type_as", "data", "alias", "pad", "getitem", "view", "reshape",
    "expand",
})  # fmt: skip
PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm", "rmatmul", "query keyᵀ", "weights value"})
WORDS = {"add": "shift", "sub": "shift", "mul": "scale", "div": "scale"}
OPENED_AT_MOST = 30
WRAPPER = 0.6  # of all steps: a module that holds so many is opened


@dataclass(eq=False)
class Draft:
    """A box to be. `steps`: all that it stands for; `calls`: the modules that it stands for as a whole; `frames`: the
    opened modules around it, the outermost first."""

    name: str
    kind: str
    role: str
    steps: list[Step]
    calls: list[Call] = field(default_factory=list)
    frames: tuple[Call, ...] = ()
    notes: list[str] = field(default_factory=list)
    count: int = 1
    reads: list[tuple[Draft | None, int]] = field(default_factory=list)  # producer (None: outside), step that it reads

    @property
    def live(self) -> list[Step]:
        """The steps whose result depends on the picture."""
        return [step for step in self.steps if step.live]

    @property
    def last(self) -> Step:
        """The last step: what the box gives."""
        return self.live[-1]


def steps_of(item: Call | Step) -> Iterator[Step]:
    """All steps inside, in order."""
    if isinstance(item, Step):
        yield item
    else:
        for inner in item.items:
            yield from steps_of(inner)


class Drafting:
    """Drafts for the inside of one call. everything: open all modules but repeated ones (for the inside of a block);
    crossing: open modules that tensors enter or leave in their middle; loose: repeats may differ in sizes; deep: open
    modules in which blocks of one kind follow each other."""

    def __init__(self, record: Record, everything: bool = False, crossing: bool = True, loose: bool = False,
                 deep: bool = True) -> None:
        self._everything, self._crossing, self._loose, self._deep = everything, crossing, loose, deep
        self.alias = {s.index: s.reads[0] for s in record.steps if copies(s)}
        self._readers: dict[int, set[int]] = {}
        for step in record.steps:
            for read in step.reads:
                if step.index not in self.alias:
                    self._readers.setdefault(self.source(read), set()).add(step.index)
        if record.output >= 0:
            self._readers.setdefault(self.source(record.output), set()).add(len(record.steps))
        self._sizes: dict[Call, int] = {}
        self._whole = sum(s.live for s in record.steps)

    def source(self, step: int) -> int:
        """The step that really made what a step gives, past copies and dropout."""
        while step in self.alias:
            step = self.alias[step]
        return step

    def drafts(self, call: Call) -> list[Draft]:
        """The boxes of what is inside a call, in order, with what each reads."""
        return self._collapsed(self._fused(self._expanded(call, (), top=True)))

    # --- what is opened ---
    def _expanded(self, call: Call, frames: tuple[Call, ...], top: bool = False) -> list[Draft]:
        found: list[Draft] = []
        loose: list[Step] = []  # what does not depend on the picture goes to who comes next
        children = [item for item in call.items if isinstance(item, Call) and self._alive(item)]
        for item in call.items:
            if not any(step.live for step in steps_of(item)):
                loose += steps_of(item)
                continue
            new = [_of_step(item, frames)] if isinstance(item, Step) else self._of_call(item, frames, children)
            if loose and new:
                new[0].steps = [*loose, *new[0].steps]
                loose = []
            found += new
        if loose and found:
            found[-1].steps += loose
        return found

    def _alive(self, call: Call) -> bool:
        return any(s.live and s.index not in self.alias and s.name not in MOVES for s in steps_of(call))

    def _of_call(self, call: Call, frames: tuple[Call, ...], siblings: list[Call]) -> list[Draft]:
        if not self._alive(call):
            return [_of_step(step, frames, call) for step in steps_of(call) if step.live]
        if call.closed:
            return [Draft(call.name, kind_of(call), "opaque", list(steps_of(call)), [call], frames)]
        inner = self._expanded(call, (*frames, call))
        boxes = self._fused(inner)
        if len(boxes) == 1 and boxes[0].role != "block":
            return [_renamed(boxes[0], call, frames)]
        if sum(box.role != "rearrange" for box in boxes) < 2 or self._opens(call, siblings, len(boxes)):
            return inner
        return [Draft(call.name, kind_of(call), "block", list(steps_of(call)), [call], frames)]

    def _opens(self, call: Call, siblings: list[Call], boxes: int) -> bool:
        place = next(i for i, other in enumerate(siblings) if other is call)
        beside = [siblings[i] for i in (place - 1, place + 1) if 0 <= i < len(siblings)]
        if any(signature(other) == signature(call) and shapes(other) == shapes(call) for other in beside):
            return False
        if self._everything:
            return boxes <= OPENED_AT_MOST
        if isinstance(call.module, nn.Sequential) or (self._deep and self._repeats(call)):
            return True
        if sum(s.live for s in steps_of(call)) > WRAPPER * self._whole and self._whole > OPENED_AT_MOST:
            return True
        return self._crossing and boxes <= OPENED_AT_MOST and self._crosses(call)

    def _repeats(self, call: Call) -> bool:
        """Whether blocks of one kind follow each other in it."""
        children = [item for item in call.items if isinstance(item, Call) and self._alive(item)]
        if any(self._repeats(child) for child in children):
            return True
        parts = [child for child in children if not isinstance(child.module, nn.Sequential)
                 and self._boxes(child) > 1]
        made: dict[type, set[int]] = {}
        for child in parts:
            mine = {s.index for s in steps_of(child)}
            read = {self.source(r) for s in steps_of(child) for r in s.reads} - mine
            if read & made.get(type(child.module), set()):
                return True
            made.setdefault(type(child.module), set()).update(mine)
        return False

    def _boxes(self, call: Call) -> int:
        if call not in self._sizes:
            self._sizes[call] = len(self._fused(self._expanded(call, ())))
        return self._sizes[call]

    def _crosses(self, call: Call) -> bool:
        mine = {s.index for s in steps_of(call)}
        come = {self.source(r) for s in steps_of(call) for r in s.reads} - mine
        go = {i for i in mine if self._readers.get(i, set()) - mine}
        return len(come) > 1 or len(go) > 1

    # --- what shares a box ---
    def _fused(self, drafts: list[Draft]) -> list[Draft]:
        """Drops copies, joins changes of axes that follow each other, hangs activations and the like on what they
        follow; sets `reads`."""
        drafts = [Draft(d.name, d.kind, d.role, list(d.steps), list(d.calls), d.frames, list(d.notes)) for d in drafts]
        owner: dict[int, Draft] = {}
        found: list[Draft] = []
        waiting: list[Draft] = []
        for draft in drafts:
            if all(s.index in self.alias for s in draft.live):
                waiting.append(draft)
                continue
            reads = self._reads(draft, owner)
            host = reads[0][0] if len(reads) == 1 else None
            if host is not None and self._joins(draft, host, owner):
                _swallow(host, draft)
                owner.update({s.index: host for s in draft.steps})
                continue
            draft.reads = reads
            owner.update({s.index: draft for s in draft.steps})
            found.append(draft)
        for draft in waiting:  # a dropout that also held something of its own
            host = owner.get(self.source(draft.last.index))
            if host is not None:
                host.steps = sorted([*host.steps, *draft.steps], key=lambda s: s.index)
                host.calls += draft.calls
            elif not found:
                found = [draft]
                draft.reads = self._reads(draft, owner)
        return found

    def _reads(self, draft: Draft, owner: dict[int, Draft]) -> list[tuple[Draft | None, int]]:
        """Whom a draft reads, each once (and each tensor from outside)."""
        mine = {s.index for s in draft.steps}
        found: dict[Any, tuple[Draft | None, int]] = {}
        for step in draft.live:
            for read in map(self.source, step.reads):
                if read not in mine:
                    producer = owner.get(read)
                    found.setdefault(producer if producer is not None else read, (producer, read))
        return list(found.values())

    def _joins(self, draft: Draft, host: Draft, owner: dict[int, Draft]) -> bool:
        """Whether a draft is drawn inside the box of what it reads."""
        if draft.role == "rearrange" and host.role == "rearrange":
            return True
        if host.role in ("block", "rearrange", "opaque") or draft.role != "follows":
            return False
        mine, theirs = {s.index for s in draft.steps}, {s.index for s in host.steps}
        others = set().union(*(self._readers.get(i, set()) for i in theirs)) - theirs - mine
        return not others and draft.last.made[1] == host.last.made[1]

    # --- what is repeated ---
    def _collapsed(self, drafts: list[Draft]) -> list[Draft]:
        """Alike boxes that follow each other, each reading the one before it, become one with a count."""
        read_by: dict[int, set[int]] = {}
        for i, draft in enumerate(drafts):
            if draft.role == "follows":
                draft.role = "layer"
            for producer, _ in draft.reads:
                if producer is not None:
                    read_by.setdefault(id(producer), set()).add(i)
        found: list[Draft] = []
        heads: dict[int, Draft] = {}  # the box that a collapsed one became part of
        for i, draft in enumerate(drafts):
            before = drafts[i - 1] if i else None
            head = heads.get(id(before), before) if before is not None else None
            if before is not None and head is not None and read_by.get(id(before)) == {i} \
                    and self._leaves(before) <= {s.index for s in draft.steps} \
                    and self._alike(before, draft) and _same_sources(head, before, draft):
                extra = _unlike(head, draft) + ["of several sizes"] * (not _same_size(before, draft))
                head.notes += [n for n in extra if n not in head.notes]
                head.steps = [*head.steps, *draft.steps]
                head.calls = [*head.calls, *draft.calls]
                head.count += 1
                heads[id(draft)] = head
            else:
                found.append(draft)
        _call_by_what_they_do(found)
        for draft in found:
            draft.reads = [(heads.get(id(p), p) if p is not None else None, s) for p, s in draft.reads]
        return found

    def _leaves(self, draft: Draft) -> set[int]:
        mine = {s.index for s in draft.steps}
        return {r for i in mine for r in self._readers.get(i, set())} - mine

    def _alike(self, one: Draft, two: Draft) -> bool:
        if (one.role, one.kind, len(one.calls), one.frames) != (two.role, two.kind, len(two.calls), two.frames):
            return False
        if one.role not in ("block", "layer") or not one.calls:
            return False
        if [signature(c) for c in one.calls] != [signature(c) for c in two.calls] or one.notes != two.notes:
            return False
        return self._loose or _same_size(one, two)


def copies(step: Step) -> bool:
    """Whether a step gives what it got: dropout at rest, a copy, an empty padding, a view of the same shape."""
    return step.name in COPIES and len(step.reads) == 1 and step.many == 1 and step.given[0][1] == step.made[1] \
        and shown(*step.given[0]) == shown(*step.made)


def kind_of(call: Call) -> str:
    """A module's class."""
    return type(call.module).__name__


def signature(call: Call) -> tuple[Any, ...]:
    """A module's structure, without sizes, without what no module stands for, and without what does nothing at rest."""
    return (type(call.module).__name__, tuple(
        signature(item) for item in call.items
        if isinstance(item, Call) and any(s.live and not copies(s) for s in steps_of(item))))


def shapes(call: Call) -> tuple[Any, ...]:
    """The sizes of what a call reads and gives and of its parameters."""
    live = [s for s in steps_of(call) if s.live]
    return (live[0].given[0][1], live[-1].made[1], tuple(tuple(p.shape) for p in call.module.parameters()))


def _same_size(one: Draft, two: Draft) -> bool:
    return (_shape_in(one), one.last.made[1]) == (_shape_in(two), two.last.made[1])


def _shape_in(draft: Draft) -> tuple[Any, ...]:
    return draft.live[0].given[0][1], tuple(tuple(p.shape) for c in draft.calls for p in c.module.parameters())


def _same_sources(head: Draft, before: Draft, draft: Draft) -> bool:
    """Whether a repeated box reads the one before it and, beside that, only what all of them read."""
    mine = {(id(p), s if p is None else 0) for p, s in draft.reads if p is not before}
    theirs = {(id(p), s if p is None else 0) for p, s in head.reads}
    return any(p is before for p, _ in draft.reads) and mine <= theirs and len(draft.reads) == len(head.reads)


def _unlike(one: Draft, two: Draft) -> list[str]:
    """What the repeats do that the first does not."""
    first = {s.name for s in one.steps if s.live}
    more = [s.name for s in two.live if s.name not in first and s.name not in MOVES | COPIES]
    return [f"some also {name}" for name in dict.fromkeys(more)][:1]


def _of_step(step: Step, frames: tuple[Call, ...], call: Call | None = None) -> Draft:
    if step.name in MOVES:
        role = "rearrange"
    elif step.name == "opaque":
        role = "opaque"
    elif step.name in PRODUCTS and len(step.given) and not step.parameters:
        role = "attention"
    elif len(step.reads) > 1:
        role = "join"
    else:
        role = "follows" if not step.acts or step.name == "batch_norm" else "layer"
    kind = {"cat": "concatenate", "concat": "concatenate", "add": "add", "mul": "multiply"}.get(step.name, step.name)
    if role == "follows" and step.name in WORDS:
        kind = f"+ {_last(step.parameters)}" if step.parameters and step.name == "add" else WORDS[step.name]
    notes = [note for note in (step.note, _along(step)) if note]
    return Draft(call.name if call else "", kind, role, [step], [call] if call else [], frames, notes)


def _last(names: Iterable[str]) -> str:
    return min(names).rpartition(".")[2]


def _along(step: Step) -> str:
    """The axis of a softmax or a concatenation."""
    if step.name in ("softmax", "log_softmax", "cat", "concat", "stack", "roll") and step.acts:
        names = [name_of(step.made[0][axis], step.made[0]) for axis in step.acts]
        sizes = [grouped(shape[step.acts[0]]) for _, shape in step.given if len(shape) == len(step.made[1])]
        return f"along {' and '.join(names)}" + (f": {' + '.join(sizes)}" if len(sizes) > 1 else "")
    return ""


def _renamed(draft: Draft, call: Call, frames: tuple[Call, ...]) -> Draft:
    """A module that comes down to one box: by its own name, and by its class where the function says no more."""
    inner = draft.calls[0] if draft.calls else call
    kind = kind_of(inner) if not isinstance(inner.module, nn.Sequential) or inner is not call else draft.kind
    return Draft(call.name, kind, draft.role, list(steps_of(call)), [inner, *(c for c in draft.calls[1:]), call]
                 if inner is not call else [call], frames, draft.notes)


def _swallow(host: Draft, draft: Draft) -> None:
    host.steps += draft.steps
    host.calls += draft.calls
    if draft.role == "rearrange":
        return
    host.notes.append(draft.kind + (f" {draft.notes[0]}" if draft.notes and draft.role != "follows" else ""))


def _call_by_what_they_do(drafts: list[Draft]) -> None:
    """Products before and after a softmax are those of an attention; changes of axes say how they came about."""
    soft = {s.index for d in drafts for s in d.steps if s.name == "softmax"}
    lead = {r for d in drafts for s in d.steps if s.index in soft for r in s.reads}
    made: dict[int, Draft] = {s.index: d for d in drafts for s in d.steps}
    scores = {id(made[r]) for r in lead if r in made}
    for draft in drafts:
        if draft.role == "attention":
            after = any(p is not None and any(s.index in soft for s in p.steps) for p, _ in draft.reads)
            draft.kind = "queries · keysᵀ" if id(draft) in scores else "weights · values" if after else "matrix product"
            draft.notes += ["both from above"] * (len(draft.reads) == 1)
        elif draft.role == "rearrange" and draft.kind in {s.name for s in draft.steps}:
            names = list(dict.fromkeys(s.name for s in draft.live if not copies(s))) or [draft.kind]
            many = max((s.many for s in draft.live), default=1)
            draft.notes = [*([f"into {many} tensors"] if many > 1 else []), *draft.notes]
            draft.kind = "take a part" if set(names) <= {"getitem", "select", "narrow"} else "rearrange"
            draft.notes += [", ".join(names[:4])] if draft.kind == "rearrange" else []


def heads_of(steps: Sequence[Step]) -> int:
    """How many heads the attention inside has; 0 where there is none."""
    for step in steps:
        if step.live and step.name in PRODUCTS:
            for wire, size in zip(*step.made, strict=True):
                if "head" in name_of(wire).split("·"):
                    return int(size)
    return 0
