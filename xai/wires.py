"""What the axes of a tensor are called, carried from operation to operation; sizes alone never decide.

Each axis holds atoms, the pieces that reshapes split and merge. A name that is learnt late (that a piece of the
channels is a head shows only where two tensors are multiplied) is written into the atom, and so holds wherever that
piece went before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from xai.circuit import Axis, Wires


class Atom:
    """A piece of an axis. part: "outer" or "inner" where a reshape split it off a longer one, `whole`."""

    __slots__ = ("name", "part", "size", "whole")

    def __init__(self, name: str, size: int, part: str = "", whole: Atom | None = None) -> None:
        self.name, self.size, self.part, self.whole = name, size, part, whole

    def lineage(self) -> set[int]:
        """Itself and what it was split off, by id."""
        return {id(self)} | (self.whole.lineage() if self.whole is not None else set())


Wire = tuple[Atom, ...]  # one axis: none where its size 1 means nothing
Bundle = tuple[Wire, ...]  # one tensor
_PLANES = ("height", "width")
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "argmax", "logsumexp",
                         "prod", "median"})  # fmt: skip


def picture(shape: Sequence[int]) -> Bundle:
    """The wires of the input: batch, channel, height and width where it has four axes."""
    names = ("batch", "channel", *_PLANES) if len(shape) == 4 else ("batch", *["axis"] * (len(shape) - 1))
    return tuple((Atom(name, int(size)),) for name, size in zip(names, shape, strict=True))


def shown(bundle: Bundle, shape: Sequence[int]) -> Wires:
    """The names and sizes of a tensor's axes as they are drawn."""
    return tuple(Axis(name_of(wire, bundle), int(size)) for wire, size in zip(bundle, shape, strict=True))


def name_of(wire: Wire, bundle: Bundle = ()) -> str:
    """One axis in a word or two. Rows and columns in one axis are tokens; those of windows, whose inside is another
    axis of the tensor, are windows."""
    names = [atom.name for atom in wire if atom.size > 1 or atom.name == "batch"] or [atom.name for atom in wire]
    if "channel" in names:  # also what a classifier reads once all is flattened
        return "batch·channel" if any(a.name == "batch" and a.size > 1 for a in wire) else "channel"
    if set(_PLANES) <= set(names):
        inside = any(a.part == "inner" and a.name in _PLANES for a in wire)
        apart = any(a.part == "inner" and a.name in _PLANES for other in bundle for a in other
                    if other is not wire and not any(b.name == "channel" for b in other))
        if not inside and apart:
            return "window"
        names = [n for n in names if n not in _PLANES] + ["token"]
    return "·".join(dict.fromkeys(names)) or "axis"


def through(name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor,
            wires: Callable[[Any], Bundle | None]) -> tuple[Bundle, tuple[int, ...]]:
    """The wires of one result, and the axes of it along which the operation mixes numbers.

    `wires` gives those of an argument, None for what does not depend on the picture.
    """
    first = next((a for a in flat(args) if isinstance(a, Tensor) and wires(a) is not None), None)
    if first is None:
        first = next((a for a in flat(list(kwargs.values())) if isinstance(a, Tensor) and wires(a) is not None), None)
    bundle = None if first is None else wires(first)
    if first is None or bundle is None:
        return _unknown(result.shape), ()
    rule = _RULES.get(name)
    if rule is None and name.startswith("conv"):
        rule = _conv
    if rule is None and ("pool" in name or "interpolate" in name or "upsample" in name or "grid_sample" in name):
        rule = _spatial
    try:
        found, acts = (rule or _elementwise)(args, kwargs, first, bundle, result, wires)
    except (IndexError, TypeError, ValueError, AttributeError, StopIteration):  # an unusual call of a usual function
        found, acts = _like(bundle, first.shape, result.shape), tuple(range(result.ndim))
    if len(found) != result.ndim:
        found = _like(bundle, first.shape, result.shape)
    return found, tuple(sorted({a % result.ndim for a in acts})) if result.ndim else ()


def flat(values: Any) -> list[Any]:
    """Arguments with lists and tuples opened."""
    if isinstance(values, (list, tuple)):
        return [inner for value in values for inner in flat(value)]
    return [values]


def _unknown(shape: Sequence[int]) -> Bundle:
    return tuple((Atom("axis", int(size)),) for size in shape)


def _sized(wire: Wire, size: int) -> Wire:
    """The same kind of axis in another size."""
    return wire if math.prod(a.size for a in wire) == size else (Atom(name_of(wire) if wire else "axis", size),)


def _like(bundle: Bundle, shape: Sequence[int], wanted: Sequence[int]) -> Bundle:
    """Same rank: the same kinds of axes. Else the batch in front, the rest unknown."""
    if len(bundle) == len(wanted):
        return tuple(_sized(wire, int(size)) for wire, size in zip(bundle, wanted, strict=True))
    if wanted and bundle and int(wanted[0]) == int(shape[0]):
        return (bundle[0], *_unknown(wanted[1:]))
    return _unknown(wanted)


def wiring(before: Bundle, after: Bundle) -> tuple[tuple[int, int], ...]:
    """Which axes before went into which axes after a change of axes: pairs of places."""
    return tuple((i, j) for i, one in enumerate(before) for j, two in enumerate(after)
                 if any(id(a) in b.lineage() or id(b) in a.lineage() for a in one for b in two
                        if min(a.size, b.size) > 1 or a.name == "batch"))


# --- rules: (args, kwargs, first live tensor, its wires, result, wires) -> wires, axes acted along ---

Found = tuple[Bundle, tuple[int, ...]]


def _elementwise(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    """From the operands of full rank, axis by axis from the one that has it in full."""
    live = [(a, wires(a)) for a in flat([args, list(kwargs.values())]) if isinstance(a, Tensor) and wires(a)]
    full = [(a, w) for a, w in live if a.ndim == result.ndim]
    if not full:
        return _like(bundle, first.shape, result.shape), tuple(range(result.ndim))
    found = []
    for axis, size in enumerate(result.shape):
        same = next((w[axis] for a, w in full if a.shape[axis] == size), None)
        found.append(same if same is not None else _sized(full[0][1][axis], int(size)))
    return tuple(found), ()


def _conv(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    planes = [axis for axis in range(2, result.ndim) if weight.shape[axis] > 1]
    deep = weight.shape[1] > 1 or first.shape[1] == 1
    found = (bundle[0], (Atom("channel", int(result.shape[1])),),
             *(_sized(w, int(s)) for w, s in zip(bundle[2:], result.shape[2:], strict=True)))
    return found, tuple([1] * deep + planes)


def _spatial(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    return _like(bundle, first.shape, result.shape), tuple(range(2, result.ndim))


def _pad(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    changed = [a for a, (s, t) in enumerate(zip(first.shape, result.shape, strict=True)) if s != t]
    return _like(bundle, first.shape, result.shape), tuple(changed)


def _linear(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    """The last axis is contracted; one of tokens or positions stays one of them, anything else gives channels."""
    old = name_of(bundle[-1])
    name = old if old in ("token", *_PLANES) else "channel"
    kept = tuple(atom for atom in bundle[-1] if atom.name == "batch" and atom.size == 1)
    return (*bundle[:-1], (*kept, Atom(name, int(result.shape[-1])))), (-1,)


def _layer_norm(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    return bundle, tuple(range(-len(shape), 0))


def _group_norm(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    return bundle, tuple(range(1, result.ndim))


def _along(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return bundle, tuple(dim) if isinstance(dim, (list, tuple)) else (dim if dim is not None else -1,)


def _rolled(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    return bundle, tuple(flat(kwargs.get("dims", args[2] if len(args) > 2 else 0)))


def _reduced(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if isinstance(dim, Tensor):  # the larger of two
        return _elementwise(args, kwargs, first, bundle, result, wires)
    gone = {d % first.ndim for d in flat(dim)} if dim is not None else set(range(first.ndim))
    if result.ndim == first.ndim:
        return tuple(() if a in gone else w for a, w in enumerate(bundle)), tuple(gone)
    return tuple(w for a, w in enumerate(bundle) if a not in gone), tuple(range(1, result.ndim))


def _cat(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0)) % result.ndim
    return tuple(_sized(w, int(result.shape[dim])) if a == dim else w for a, w in enumerate(bundle)), (dim,)


def _stack(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.ndim
    return (*bundle[:dim], (Atom("axis", int(result.shape[dim])),), *bundle[dim:]), (dim,)


def _product(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    """Matrices: rows of the one, columns of the other; what stands before them is repeated over, and a piece of the
    channels there is a head."""
    a, b = args[-2:]
    one, two = wires(a), wires(b)
    if one is None or two is None:
        mine = one if one is not None else two
        if one is not None and len(mine) == result.ndim:
            return _linear(args, kwargs, first, mine, result, wires)
        return _like(bundle, first.shape, result.shape), tuple(range(1, result.ndim))
    return product(one, two, result)


def product(one: Bundle, two: Bundle, result: Tensor) -> Found:
    """The wires of a matrix product of two tensors that both depend on the picture."""
    for bundle in (one, two):
        for wire in bundle[:-2]:
            for atom in wire:
                if atom.name == "channel":
                    atom.name = "head"
    lead = one[:-2] if len(one) == result.ndim else two[:-2]
    return (*lead, one[-2], two[-1])[-result.ndim :], (-2, -1)


def _reversed(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    return _product(args[::-1], kwargs, first, bundle, result, wires)


def _einsum(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    """Letter by letter; letters that two live operands share and keep are repeated over."""
    left, _, out = args[0].replace(" ", "").partition("->")
    terms, operands = left.split(","), flat(args[1:])
    known = {letter: wire for term, operand in zip(terms, operands, strict=True) if wires(operand)
             for letter, wire in zip(term, wires(operand), strict=True)}
    found = tuple(known.get(letter, (Atom("channel", int(size)),))
                  for letter, size in zip(out, result.shape, strict=True))
    kept = [set(term) for term in terms if set(term)]
    return found, tuple(i for i, letter in enumerate(out) if not all(letter in term for term in kept))


def _reordered(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    order = flat(args[1:] if len(args) > 1 else kwargs["dims"])
    return tuple(bundle[d] for d in order), ()


def _swapped(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    if len(args) > 2:
        i, j = args[1] % first.ndim, args[2] % first.ndim
    elif kwargs.keys() & {"dim0", "axis0"}:
        i, j = (kwargs.get(f"dim{k}", kwargs.get(f"axis{k}")) % first.ndim for k in (0, 1))
    else:
        i, j = first.ndim - 2, first.ndim - 1  # .T, .mT, .t()
    found = list(bundle)
    found[i], found[j] = found[j], found[i]
    return tuple(found), ()


def _moved(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    come, go = flat(args[1]), [d % first.ndim for d in flat(args[2])]
    come = [d % first.ndim for d in come]
    rest = iter([w for a, w in enumerate(bundle) if a not in come])
    placed = dict(zip(go, come, strict=True))
    return tuple(bundle[placed[a]] if a in placed else next(rest) for a in range(first.ndim)), ()


def _reshaped(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    return split_and_merged(bundle, result.shape), ()


def split_and_merged(bundle: Bundle, shape: Sequence[int]) -> Bundle:
    """The wires after a reshape: atoms are split and merged where the sizes allow it, else all is unknown."""
    atoms = [atom for wire in bundle for atom in wire]
    found: list[Wire] = []
    for size in map(int, shape):
        held: list[Atom] = []
        while math.prod(a.size for a in held) < size and atoms:
            atom, open_ = atoms.pop(0), size // math.prod(a.size for a in held)
            if atom.size > open_ and atom.size % open_ == 0:
                held.append(Atom(atom.name, open_, "outer" if atom.part != "inner" else "inner", atom))
                atoms.insert(0, Atom(atom.name, atom.size // open_, "inner", atom))
                break
            held.append(atom)
        if size == 1 and atoms and atoms[0].size == 1:
            held.append(atoms.pop(0))
        if math.prod(a.size for a in held) != size:
            return (bundle[0], *_unknown(shape[1:])) if shape and bundle and int(shape[0]) == math.prod(
                a.size for a in bundle[0]) else _unknown(shape)
        found.append(tuple(held))
    if atoms and all(a.size == 1 for a in atoms) and found:
        found[-1] = (*found[-1], *atoms)
    return tuple(found)


def _indexed(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(i, (Tensor, list)) for i in index):
        return _like(bundle, first.shape, result.shape), (0,)
    used = sum(i is not None and i is not Ellipsis for i in index)
    found: list[Wire] = []
    rest = list(bundle)
    for i in index:
        if i is None:
            found.append(())
        elif i is Ellipsis:
            found += rest[: first.ndim - used]
            rest = rest[first.ndim - used :]
        elif isinstance(i, slice):
            found.append(rest.pop(0))
        else:
            rest.pop(0)
    found += rest
    return tuple(w if not w else _sized(w, int(s)) for w, s in zip(found, result.shape, strict=True)), ()


def _chosen(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    """select and unbind: the axis goes."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % first.ndim
    return (*bundle[:dim], *bundle[dim + 1 :]), ()


def _unsqueezed(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.ndim
    return (*bundle[:dim], (), *bundle[dim:]), ()


def _squeezed(args: Any, kwargs: Any, first: Tensor, bundle: Bundle, result: Tensor, wires: Any) -> Found:
    dims = flat(kwargs.get("dim", list(args[1:]) or list(range(first.ndim))))
    gone = {d % first.ndim for d in dims if first.shape[d] == 1}
    return tuple(w for a, w in enumerate(bundle) if a not in gone), ()


_RULES: dict[str, Callable[..., Found]] = {
    "linear": _linear, "layer_norm": _layer_norm, "rms_norm": _layer_norm, "group_norm": _group_norm,
    "instance_norm": _spatial, "pad": _pad, "einsum": _einsum, "rmatmul": _reversed, "stack": _stack,
    "pixel_shuffle": _group_norm, "pixel_unshuffle": _group_norm, "local_response_norm": _group_norm,
    "permute": _reordered, "movedim": _moved, "moveaxis": _moved, "getitem": _indexed, "select": _chosen,
    "unbind": _chosen, "unsqueeze": _unsqueezed, "squeeze": _squeezed,
    **dict.fromkeys(("softmax", "log_softmax", "normalize", "cumsum"), _along),
    "roll": _rolled,
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm"), _product),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "T", "mT", "t"), _swapped),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "reshape_as", "view_as"), _reshaped),
}
