"""One forward as steps: every torch function with what it read and gave, inside the module call where it ran."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from xai import outputs, wires
from xai.multiply_adds import multiply_adds
from xai.rules import MULTI_HEAD
from xai.step_words import words
from xai.wires import Bundle, flat

PICTURE = -1  # what a step reads where it reads the input


@dataclass(eq=False)
class Step:
    """One call of a torch function. reads: the steps whose results it reads, PICTURE for the input, once each;
    given: the wires and shape of each of them; made: those of its own (first) result. acts: axes of it that are mixed.
    live: the result depends on the picture. parameters: the names of those that it reads, also by way of steps that
    are not live."""

    index: int
    name: str
    reads: tuple[int, ...]
    given: tuple[tuple[Bundle, tuple[int, ...]], ...]
    made: tuple[Bundle, tuple[int, ...]]
    acts: tuple[int, ...]
    multiply_adds: int
    live: bool
    parameters: frozenset[str]
    many: int = 1  # results
    note: str = ""


@dataclass(eq=False)
class Call:
    """One run of a module: what ran inside, in order. name: its path in the network; "" for the network itself."""

    name: str
    module: nn.Module
    items: list[Call | Step] = field(default_factory=list)
    closed: bool = False  # its result came about where no torch function was seen


@dataclass
class Record:
    """A whole forward: the call of the network, all steps, the step that made the (last) output and the input's wires.
    """

    root: Call
    steps: list[Step]
    output: int
    picture: tuple[Bundle, tuple[int, ...]]


def record(module: nn.Module, example: Tensor) -> Record:
    """Run the picture (1, C, H, W) through a network in eval mode and note every step.

    Seen are the functions and methods of torch that Python code calls; `scaled_dot_product_attention` and the inside
    of MultiheadAttention are noted as the products and the softmax that they are. A module whose result nothing of
    that explains (one compiled or written elsewhere) is one step, "opaque". Hooks are removed afterwards, also after
    an exception of the network.
    """
    recorder = _Recorder(module)
    with ExitStack() as stack, torch.no_grad():
        picture = example[:1].detach().clone()
        recorder.begin(picture)
        for child in recorder.names:
            stack.callback(child.register_forward_pre_hook(recorder.enter, prepend=True).remove)
            stack.callback(child.register_forward_hook(recorder.leave, prepend=True, with_kwargs=True).remove)
        with recorder:
            module(picture)
    return recorder.finish()


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {child: name for name, child in module.named_modules()}
        self._steps: list[Step] = []
        self._root = Call("", module)
        self._stack: list[Call] = [self._root]
        self._made: Any = WeakIdKeyDictionary()  # tensor -> the step that wrote it last
        self._wires: Any = WeakIdKeyDictionary()  # only of tensors that depend on the picture
        self._tags: Any = WeakIdKeyDictionary()  # tensors that do not, with the parameters in them
        for name, parameter in module.named_parameters():
            self._tags[parameter] = frozenset((name,))
        self._over = False
        self._output = PICTURE
        self._picture: tuple[Bundle, tuple[int, ...]] = ((), ())

    def begin(self, picture: Tensor) -> None:
        self._made[picture], self._wires[picture] = PICTURE, wires.picture(picture.shape)
        self._picture = self._wires[picture], tuple(picture.shape)

    def finish(self) -> Record:
        return Record(self._root, self._steps, self._output, self._picture)

    # --- modules ---
    def enter(self, module: nn.Module, args: Any) -> None:
        if module is self._root.module:
            return
        call = Call(self.names[module], module)
        self._stack[-1].items.append(call)
        self._stack.append(call)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            call = self._stack[-1]
            for _, tensor in outputs.tensors(output):
                if tensor not in self._made and tensor not in self._tags and not self._over:
                    read = [t for _, t in outputs.tensors((args, kwargs)) if t in self._wires]
                    if read:
                        self._note("opaque", read, {}, tensor, 0)
                        call.closed = True
            if module is not self._root.module:
                self._stack.pop()
                return
            self._over = True
            self._output = max((self._made.get(t, PICTURE) for _, t in outputs.tensors(output)), default=PICTURE)

    # --- functions ---
    def __torch_function__(self, func: Any, kinds: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Called by torch instead of every function of its own."""
        kwargs = kwargs or {}
        if self._over:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return MULTI_HEAD(*args, **kwargs)
        name = _named(func)
        before = [t for t in flat([list(args), list(kwargs.values())]) if isinstance(t, Tensor)]
        known = {id(t): self._wires.get(t) for t in before}  # as they were: the function may work in place
        result = func(*args, **kwargs)
        if name == "scaled_dot_product_attention" and all(known[id(t)] for t in before[:3]):
            self._attention(args, kwargs, result)
        elif name == "setitem":
            self._note(name, [args[0], args[2]], {}, args[0], 0)
        elif any(isinstance(value, Tensor) for value in flat(result)):
            self._note(name, args, kwargs, result, multiply_adds(name, args, kwargs, result))
        return result

    def _note(self, name: str, args: Any, kwargs: dict[str, Any], result: Any, products: int) -> Step:
        made = [t for t in flat(list(result.values()) if isinstance(result, dict) else result) if isinstance(t, Tensor)]
        read = [t for t in flat([list(args), list(kwargs.values())]) if isinstance(t, Tensor)]
        live = [t for t in read if t in self._wires]
        tags = frozenset().union(*(self._tags.get(t, ()) for t in read))
        given = {self._made[t]: (self._wires[t], tuple(t.shape)) for t in live}
        bundles = [wires.through(name, args, kwargs, t, self._wires.get) for t in made]
        if name == "setitem" and live and result in self._wires:
            bundles = [(self._wires[result], ())]
        step = Step(len(self._steps), name, tuple(given), tuple(given.values()),
                    (bundles[0][0], tuple(made[0].shape)), bundles[0][1], products, bool(live), tags, len(made),
                    words(name, args, kwargs, result))
        self._keep(step)
        for tensor, (bundle, _) in zip(made, bundles, strict=True):
            self._made[tensor] = step.index
            if live:
                self._wires[tensor] = bundle
            elif tensor not in self._wires:
                self._tags[tensor] = tags
        return step

    def _keep(self, step: Step) -> None:
        self._steps.append(step)
        self._stack[-1].items.append(step)

    def _attention(self, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> None:
        """softmax(q k^T) v as the three steps that it is; how many heads share a key does not change the products."""
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, key, value = (named[n] for n in ("query", "key", "value"))
        shape = (*query.shape[:-1], key.shape[-2])
        pairs = query.shape[:-1].numel() * key.shape[-2]
        one, two, three = (self._wires[t] for t in (query, key, value))
        swapped = (*two[:-2], two[-1], two[-2])
        scores = wires.product(one, swapped, torch.empty(shape, device="meta"))[0]
        mask = named.get("attn_mask")
        tags = self._tags.get(mask, frozenset()) if isinstance(mask, Tensor) else frozenset()
        read = {self._made[t]: (self._wires[t], tuple(t.shape)) for t in (query, key)}
        if isinstance(mask, Tensor) and mask in self._wires:
            read[self._made[mask]] = self._wires[mask], tuple(mask.shape)
        first = Step(len(self._steps), "query keyᵀ", tuple(read), tuple(read.values()), (scores, shape),
                     (len(shape) - 2, len(shape) - 1), pairs * query.shape[-1], True, tags,
                     note="with a mask or bias" if isinstance(mask, Tensor) else "")
        self._keep(first)
        self._keep(Step(first.index + 1, "softmax", (first.index,), (first.made,), first.made, (len(shape) - 1,), 0,
                        True, frozenset()))
        found = wires.product(scores, three, result)[0]
        read = {first.index + 1: first.made}
        read[self._made[value]] = self._wires[value], tuple(value.shape)
        last = Step(first.index + 2, "weights value", tuple(read), tuple(read.values()), (found, tuple(result.shape)),
                    (result.ndim - 2, result.ndim - 1), pairs * value.shape[-1], True, frozenset())
        self._keep(last)
        self._made[result], self._wires[result] = last.index, found


def _named(func: Any) -> str:
    """A function's name without a sign that it works in place, is private, or has its operands swapped."""
    name = str(getattr(func, "__name__", "") or type(func).__name__)
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", "attribute"))
    if isinstance(func, torch._ops.OpOverload):
        name = func._schema.name.rpartition("::")[2]
    name = name.strip("_")
    swapped = {"radd": "add", "rmul": "mul", "rsub": "sub", "rtruediv": "div", "truediv": "div"}
    if name.startswith("i") and name[1:] in ("add", "sub", "mul", "truediv", "matmul"):
        name = name[1:]
    return swapped.get(name, name)
