"""A network as plain data for a drawing: boxes, the tensors between them with an axis a wire, and what reads what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor. `name`: batch, channel, height, width, token, head, window, several joined by "·" where one
    axis holds several, "axis" where nothing tells what it is."""

    name: str
    size: int


Wires = tuple[Axis, ...]


@dataclass(frozen=True)
class Box:
    """One step of a flow.

    name: the module's path, or of the operation where no module stands for it; kind: its class or the operation. role:
    "layer", "block" (opened in `Diagram.blocks[inside]`, where there is one), "join" (tensors meet: add, concatenate),
    "attention" (a product of two tensors that both come from the picture), "rearrange" (the same numbers under other
    axes) or "opaque" (nothing is known but the shapes). note: sizes and what follows in the same box. count: how many
    such boxes in a row are drawn as this one. parameters and multiply_adds are those of all `count` together, for one
    picture. reads: the boxes of this flow that it reads, -1 - i for the i-th input of the flow; inputs: the tensor of
    each of them. acts: the places, among the axes of the output, along which it mixes numbers; it repeats itself over
    the others. wiring: of a rearranging box, which axes of its input (the first of `inputs`) went into which of its
    output.
    """

    name: str
    kind: str
    role: str
    note: str
    count: int
    parameters: int
    multiply_adds: int
    reads: tuple[int, ...]
    inputs: tuple[Wires, ...]
    output: Wires
    acts: tuple[int, ...]
    inside: int | None = None
    wiring: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Stage:
    """The boxes first to last (inclusive) of a flow that belong to one module; `blocks`: how many blocks they stand
    for, 0 where there are none. parameters and multiply_adds: of all of them together."""

    name: str
    kind: str
    first: int
    last: int
    blocks: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Flow:
    """Boxes in the order of execution; what the flow reads; the stages, which do not overlap and need not cover all.

    name and kind: of the module; output: the box whose tensor it gives; same: other modules with the same inside.
    """

    name: str
    kind: str
    inputs: tuple[Wires, ...]
    boxes: tuple[Box, ...]
    stages: tuple[Stage, ...]
    output: int
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagram:
    """A whole network: its flow, and each kind of block opened once.

    parameters: of the network, shared ones counted once: the sum over the boxes of `flow` and `unread`, which are those
    that no step of this forward reads. multiply_adds: products that are summed in convolutions, linear maps and matrix
    products, for one picture: the sum over the boxes of `flow`.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int
    unread: int
    flow: Flow
    blocks: tuple[Flow, ...]
    notes: tuple[str, ...] = ()
