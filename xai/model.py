"""A model: a callable with everything that belongs to its weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xai import seeds
from xai.batch import Batch, Pacing
from xai.compiled import Compiled
from xai.devices import PRECISIONS, free_memory, pick_device
from xai.errors import OutOfMemory, XaiError, error
from xai.fast import Fast, fast_form, freeze
from xai.heads import Head, resolve_head
from xai.images import Image, Images, load_images
from xai.layers import LayerView
from xai.modules import disinferred, hash_state, kept, moved
from xai.pace import MAX_CHUNK, MAX_CHUNK_GPU, UNKNOWN, Pace, activation_sizes, fitting
from xai.preprocessing import Prepared, Preprocessing
from xai.resolver import list_layers, resolve_layer
from xai.result import ModelRecord
from xai.targets import Target

WANTS = {"gradients": "gradients", "hooks": "access to its layers", "forward": "a forward"}


@dataclass
class PassCount:
    """Forwards and backwards so far, counted in pictures; `told` is called after each."""

    forwards: int = 0
    backwards: int = 0
    told: Callable[[], None] | None = None

    @property
    def work(self) -> int:
        """In forwards; a backward costs about two."""
        return self.forwards + 2 * self.backwards

    def add(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count passes of so many pictures."""
        self.forwards += forwards
        self.backwards += backwards
        if self.told is not None:
            self.told()


class Model:
    """A network with its preprocessing, class names, head, identity and capabilities.

    module: the network (kept as it is, never changed), or None with `forward`, a callable (n, C, H, W) -> (n, classes),
    for a model that can only be run. mean, std: per channel, in the units of `range`; size: input (height, width) or
    one number. labels: class names in order. Capabilities: "forward", "gradients", "hooks". Raises XaiError where these
    do not fit together.
    """

    def __init__(self, module: nn.Module | None = None, *, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, size: int | tuple[int, int] | None = None,
                 labels: Sequence[str] | None = None,
                 preprocessing: Preprocessing | None = None, forward: Callable[[Tensor], Any] | None = None,
                 capabilities: Iterable[str] | None = None, spec: str = "", weights: str = "as given",
                 weights_hash: str | None = None, random_weights: bool = False, runs_code: bool = False,
                 channels: int = 3, layer: str = "auto", grid: tuple[int, int] | None = None, head: str | None = None,
                 output: str | None = None, device: str | torch.device | None = None, precision: str | None = None,
                 notes: Sequence[str] = ()) -> None:
        if (module is None) == (forward is None):
            raise error("a Model", "made from a module or from a forward callable", "both or neither",
                        "Give one of them")
        module = getattr(module, "_orig_mod", module)  # what torch.compile wraps: its own code cannot be looked into
        self._module, self._call = module, forward
        self.spec = spec or f"module:{type(module if module is not None else forward).__name__}"
        self.labels = tuple(labels) if labels is not None else None
        self.capabilities = frozenset(capabilities if capabilities is not None else
                                      ("forward", "gradients", "hooks") if module is not None else ("forward",))
        self.preprocessing = preprocessing or _given(mean, std, size, channels)
        self.weights, self.random_weights, self.runs_code = weights, random_weights, runs_code
        self.notes = list(notes)
        self.cost = PassCount()
        self.device, self.dtype = self._placed(device, precision)
        self.options: dict[str, Any] = {"layer": layer, "grid": grid, "head": head, "output": output}
        self._hash = weights_hash
        self._head: Head | None = None
        self._plain: nn.Module | None = None
        self._fast: Fast | None = None
        self._views: dict[tuple[str, tuple[int, ...]], LayerView] = {}
        self._sizes: tuple[int, int] | None = None
        self._paces: dict[tuple[Any, ...], Pace] = {}
        self._clean = set[tuple[int, ...]]()
        self.compiled = False
        self._compiled: Compiled | None = None

    def _placed(self, device: str | torch.device | None, precision: str | None) -> tuple[torch.device, torch.dtype]:
        first = next(iter(self._module.parameters()), None) if self._module is not None else None
        place = (pick_device(device) if device is not None else
                 first.device if first is not None else torch.device("cpu"))
        if precision is not None and precision not in PRECISIONS:
            raise error("the precision", f"one of {', '.join(PRECISIONS)}", repr(precision),
                        "Name one with --precision")
        dtype = PRECISIONS[precision] if precision else torch.float32
        if first is not None and precision is None and first.is_floating_point():
            dtype = first.dtype
        if self._module is not None and (device is not None or precision is not None):
            self._module = moved(self._module, place, dtype)
        return place, dtype

    # --- identity ---
    @property
    def weights_hash(self) -> str:
        """Hex sha256, first 16 digits, of all parameters and buffers by name."""
        if self._hash is None:
            self._hash = hash_state(self._module.state_dict()) if self._module is not None else "unknown"
        return self._hash

    @property
    def head(self) -> Head:
        """What the output is."""
        if self._head is None:
            with torch.no_grad():
                self._probe(self.example())
        assert self._head is not None
        return self._head

    def class_name(self, index: int) -> str:
        """The name of a class, or "class 7" where the model has none."""
        return self.labels[index] if self.labels and index < len(self.labels) else f"class {index}"

    def record(self, layer: str | None = None) -> ModelRecord:
        """The identity as the record keeps it; with `layer`, also which layer that names and why."""
        view = self.view(layer) if layer is not None and "hooks" in self.capabilities else None
        parameters = sum(p.numel() for p in self._module.parameters()) if self._module is not None else 0
        return ModelRecord(
            spec=self.spec, weights_hash=self.weights_hash, weights=self.weights, random_weights=self.random_weights,
            runs_code=self.runs_code, layer=view.name if view else "", layer_reason=view.reason if view else "",
            grid=view.grid if view else None, head=f"{self.head.kind} ({self.head.size})", head_reason=self.head.reason,
            preprocessing=self.preprocessing.describe(), preprocessing_reason=self.preprocessing.reason,
            parameters=parameters, capabilities=tuple(sorted(self.capabilities)), notes=tuple(self.notes))

    def need(self, capability: str) -> None:
        """Raise XaiError where the model cannot do that."""
        if capability not in self.capabilities:
            raise error("the model", f"one that gives {WANTS[capability]} for this method",
                        f"{self.spec}, which does not", "Use a method that needs only forwards (`xai methods list`), "
                        "or the network's own code and weights")

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The network's parameters by name; none where it can only be run."""
        return iter(self._module.named_parameters() if self._module is not None else ())

    # --- running ---
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes), or whatever the head holds, of prepared inputs (n, C, H, W). No gradient is recorded."""
        with torch.no_grad():
            return self.run(inputs.to(self.device, self.dtype))

    def infer(self, inputs: Tensor, chunk: int = 0) -> Tensor:
        """As a call, in inference mode: for many forwards that no gradient passes; compiled where `compiled` is set.

        chunk: how many inputs other such forwards hold (a compiled network is built for one number of them).
        """
        with torch.inference_mode():
            module: Any = None
            if self.compiled and self._call is None:
                self._compiled = self._compiled or Compiled(self.fast.module)
                self._compiled.batch = max(chunk, len(inputs))
                module = self._compiled
            output = self.run(inputs.to(self.device, self.dtype), module)
        if self._call is None and tuple(inputs.shape) not in self._clean:
            disinferred(self.fast.module)
            self._clean.add(tuple(inputs.shape))
        return output.clone()  # an ordinary tensor

    def run(self, inputs: Tensor, module: Callable[[Tensor], Any] | None = None) -> Tensor:
        """One counted forward in the caller's grad mode, in the fast form unless a module is given."""
        call: Any = module if module is not None else self._call if self._call is not None else self.fast.module
        own = self._module is not None and (call is self._module or (isinstance(call, Compiled)
                                                                     and self.fast.module is self._module))
        with kept(self._module) if own else contextlib.nullcontext():
            if own and self._module is not None:  # the caller's network, as it cannot be copied: perhaps it trains
                self._module.eval()
            output = self._read(self.told(lambda: call(inputs), inputs))
        if len(output) != len(inputs):
            raise error("the model", f"one that gives {len(inputs)} outputs for as many pictures", len(output),
                        "Let it run each picture of a batch by itself")
        self.cost.add(forwards=len(inputs))
        return output

    def _read(self, output: Any) -> Tensor:
        """What the head holds; the first output tells what that is."""
        if self._head is None:
            self._head = resolve_head(output, self.options["head"], self.options["output"])
            classes, named = self._head.size, self._head.kind in ("classes", "multi-label")
            if self.labels is not None and named and len(self.labels) != classes:
                self.notes.append(f"{len(self.labels)} class names were given for {classes} classes: "
                                  "the names are left out")
                self.labels = None
        return self._head.read(output)

    def told(self, call: Callable[[], Any], inputs: Tensor) -> Any:
        """What the call, a pass of the network, gives; a failure becomes a sentence."""
        try:
            return call()
        except XaiError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as problem:
            raise _short(inputs) from problem
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, KeyError) as problem:
            if "can't allocate memory" in str(problem):  # how torch's CPU allocator says it
                raise _short(inputs) from problem
            first = str(problem).strip().splitlines()[0][:300] if str(problem).strip() else type(problem).__name__
            raise error("the input", f"one that {self.spec} can run", f"{tuple(inputs.shape)}: {first}",
                        "Check size and channels (?size= on the spec), or the model's own code") from problem

    @property
    def fast(self) -> Fast:
        """Conv+BN folded, channels-last, frozen; built once."""
        if self._fast is None:
            assert self._module is not None
            with kept(self._module):
                self._module.eval()
                self._fast = self.told(lambda: fast_form(self._module, self.example()), self.example())  # type: ignore[arg-type]  # asserted above
                freeze(self._fast.module) if self._fast.module is not self._module else None
        return self._fast

    def runner(self, layers: Iterable[str] | None) -> nn.Module:
        """The module whose named layers give the network's own values: the fast form unless a layer was folded away;
        None: the caller's own network, of which no copy is made, to be given to `run`."""
        assert self._module is not None
        if layers is None or not any(name in self.fast.folded for name in layers):
            return self._module if layers is None else self.fast.module
        if self._plain is None:
            self._plain = freeze(copy.deepcopy(self._module))
        return self._plain

    def example(self) -> Tensor:
        """A seeded noise input (1, C, H, W), so that what is asked of the network does not depend on a picture."""
        shape = (1, self.preprocessing.channels, *self.preprocessing.size)
        return torch.randn(shape, generator=seeds.generator(0, "example")).to(self.device, self.dtype)

    def view(self, layer: str = "auto", example: Tensor | None = None) -> LayerView:
        """The layer that a name or "auto" means, for inputs of the example's shape, and how to read it."""
        self.need("hooks")
        assert self._module is not None
        example = self.example() if example is None else example
        name = self.options["layer"] if layer == "auto" else layer
        key = (name, tuple(example.shape[1:]))
        if key not in self._views:
            with kept(self._module):
                self._module.eval()
                if self._head is None:
                    with torch.no_grad():
                        self._probe(example)
                self._views[key] = self.told(lambda: resolve_layer(
                    self._module, example, self._top_score, name, grid=self.options["grid"]), example)  # type: ignore[arg-type]  # asserted above
        return self._views[key]

    def layers(self) -> list[LayerView]:
        """Every output with spatial extent, in the order of execution: what `layer` may name."""
        self.need("hooks")
        assert self._module is not None
        module, example = self._module, self.example()
        with kept(module):
            return list(self.told(lambda: list_layers(module, example), example))

    def _top_score(self, output: Any) -> Tensor:
        assert self._head is not None
        value = self._head.read(output)
        if value.ndim not in (2, 4):
            return value.flatten(1).sum(1)
        if value.ndim == 4 and self._head.kind != "map":
            return value.sum((1, 2, 3))
        return Target("top1").bind(value.detach(), kind=self._head.kind)(value)

    def _probe(self, example: Tensor) -> None:
        call: Any = self._call if self._call is not None else self._module
        with kept(self._module):
            if self._module is not None:
                self._module.eval()
            self._read(self.told(lambda: call(example), example))

    def embed(self, source: str) -> Tensor:
        """The head's output (1, size) for one picture, for embedding targets."""
        return next(self.prepare(load_images(source))).output()

    # --- pictures ---
    def prepare(self, images: Images | Sequence[Image], *, seed: int = 0, memory_bytes: int | None = None,
                chunk: int | None = None, bad: Callable[[str, str], None] | None = None) -> Iterator[Batch]:
        """Batches in order, at most 32 pictures each, streamed.

        chunk: pictures a batch (default: what fits `memory_bytes` and keeps each activation small). bad: called with
        (name, sentence) for a picture that cannot be used, which is then left out; without it the XaiError is raised.
        A picture that comes again bears its hash with -2, -3, ...
        """
        pace = Pacing(chunk or self.chunk(memory_bytes), memory_bytes, chunk)
        names = getattr(images, "label_names", None)
        held: list[tuple[Image, Prepared, int | str | None]] = []
        met: Counter[str] = Counter()
        for i in range(len(images)):
            try:
                image = images[i]
                met[image.hash] += 1
                if met[image.hash] > 1:  # the record tells pictures apart by their hash
                    image = replace(image, hash=f"{image.hash}-{met[image.hash]}")
                item = (image, self.preprocessing(image), _named(image.label, names))
            except XaiError as problem:
                if bad is None:
                    raise
                bad(images.names[i] if isinstance(images, Images) else f"picture {i}", str(problem))
                continue
            if held and (len(held) == pace.batch or held[0][1].input.shape != item[1].input.shape):
                yield self._batch(held, seed, pace)
                held = []
            held.append(item)
        if held:
            yield self._batch(held, seed, pace)

    def _batch(self, held: list[tuple[Image, Prepared, int | str | None]], seed: int, pace: Pacing) -> Batch:
        images, prepared, truth = zip(*held, strict=True)
        return Batch(self, images, prepared, seed, truth, pace)

    def chunk(self, memory_bytes: int | None = None) -> int:
        """How many pictures a batch takes: from the traced sizes of the activations and the memory budget, 1 to 32."""
        return self._fitting(memory_bytes)[0]

    def _fitting(self, memory_bytes: int | None, larger: float = 1.0) -> tuple[int, int]:
        """(a batch, the most that fits into memory), in pictures of so many times the pixels of the model's input."""
        if self._module is None or "hooks" not in self.capabilities:
            return UNKNOWN, MAX_CHUNK
        if self._sizes is None:
            self._sizes = activation_sizes(self._module, lambda: self._probe(self.example()))
        largest, total = (round(size * larger) for size in self._sizes)
        return fitting(largest, total, memory_bytes or free_memory(self.device) // 2, self.device)

    def pace(self, shape: Sequence[int], memory_bytes: int | None = None, chunk: int | None = None) -> Pace:
        """How many inputs of that shape (C, H, W) a forward takes where there are many: searched once, unless `chunk`
        fixes it."""
        key = (tuple(shape), memory_bytes, chunk, self.compiled)
        if key not in self._paces:
            larger = math.prod(shape[1:]) / math.prod(self.preprocessing.size)
            start, fits = self._fitting(memory_bytes, larger)
            most = min(fits, MAX_CHUNK if self.device.type == "cpu" else MAX_CHUNK_GPU)
            fixed = chunk is not None or self.compiled
            self._paces[key] = Pace(chunk or start, chunk or most, fixed)
        return self._paces[key]

    @contextlib.contextmanager
    def opened(self) -> Iterator[nn.Module]:
        """The raw network in eval mode, for captum, shap, optimisers and attacks; its passes are counted.

        Hooks, gradients, training flags, requires_grad and buffers' identity are put back afterwards, also after an
        exception.
        """
        self.need("gradients")
        assert self._module is not None
        module = self._module
        with kept(self._module):
            module.eval()
            handle = module.register_forward_hook(self._count)
            try:
                yield module
            finally:
                handle.remove()

    def _count(self, _: nn.Module, args: Any, output: Any) -> None:
        n = len(args[0]) if args and isinstance(args[0], Tensor) else 1
        self.cost.add(forwards=n)
        value = self._read(output)
        if value.requires_grad:
            value.register_hook(lambda g: self.cost.add(backwards=len(g)))  # type: ignore[no-untyped-call]  # torch's own gap



def _short(inputs: Tensor) -> OutOfMemory:
    return OutOfMemory(str(error("the memory", f"enough for {len(inputs)} pictures of {tuple(inputs.shape[1:])}",
                                 "too little", "Lower --memory, or use smaller pictures")))


def _given(mean: Sequence[float] | None, std: Sequence[float] | None, size: int | tuple[int, int] | None,
           channels: int) -> Preprocessing:
    if (mean is None) != (std is None):
        raise error("mean and std", "given together", "one of them", "Give both, per channel, in units of 0 to 1")
    height, width = (224, 224) if size is None else (size, size) if isinstance(size, int) else size
    count = len(mean) if mean is not None and len(mean) > 1 else channels
    return Preprocessing((height, width), tuple(mean) if mean is not None else None,
                         tuple(std) if std is not None else None, channels=count,
                         reason="given by the caller" if mean is not None else "none was given")


def _named(label: int | str | None, names: Sequence[str] | None) -> int | str | None:
    return names[label] if names and isinstance(label, int) and label < len(names) else label
