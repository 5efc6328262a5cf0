"""What is explained: one scalar per picture, from any output of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xai.errors import XaiError, did_you_mean, error

Truth = Sequence[int | str | None]
Labels = Sequence[str] | None
SPATIAL = ("map", "image")
FORMS = ('top1, top3, class:281, a class name, label, label+top1, rank:2, "a - b", mask:CLASS, pixel:X,Y,C, '
         'embedding:PICTURE')


@dataclass(frozen=True)
class Bound:
    """A target fixed for the pictures of one batch: `bound(output)` -> (n,), the scalar explained of each.

    `output` is what the head holds: (n, classes) or (n, channels, h, w), for the same n pictures in the same order.
    `classes` (n,) and `versus` (n,) hold class numbers where the target is a class or a contrast, else None. `names`
    says for each picture in words what is explained; `skip` marks pictures for which another target already gives this
    map. `chosen` gives the same target for a choice of pictures where it is another one for each.
    """

    score: Callable[[Tensor], Tensor]
    names: tuple[str, ...]
    classes: Tensor | None = None
    versus: Tensor | None = None
    skip: tuple[bool, ...] = ()
    chosen: Callable[[Sequence[int]], Bound] | None = None

    def __call__(self, output: Tensor) -> Tensor:
        try:
            value = self.score(output)
        except (XaiError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # a person's callable may raise anything
            raise error(f"the target {self.names[0]}", f"one that works on an output of shape {tuple(output.shape)}",
                        f"{type(problem).__name__}: {problem}", "Mend the callable") from problem
        if not isinstance(value, Tensor) or value.shape != (len(output),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise error(f"the target {self.names[0]}", f"one number a picture, of shape ({len(output)},)", got,
                        "Let the callable reduce everything but the first axis")
        return value

    def take(self, rows: Sequence[int]) -> Bound:
        """The same target for a choice of pictures, repeats allowed (a batch of steps of one picture repeats it)."""
        if self.chosen is not None:
            return self.chosen(rows)
        if self.classes is None:
            return Bound(self.score, tuple(self.names[i] for i in rows))
        index = torch.as_tensor(list(rows), device=self.classes.device)
        versus = None if self.versus is None else self.versus[index]
        return of_classes(self.classes[index], tuple(self.names[i] for i in rows), versus)


@dataclass(frozen=True)
class Target:
    """A rule that picks the scalar: see `FORMS`. `unless` names a rule whose map is not made twice (label+top1)."""

    text: str = "top1"
    function: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    unless: str = ""

    def bind(self, output: Tensor, *, kind: str = "classes", labels: Labels = None, truth: Truth = (),
             embed: Callable[[str], Tensor] | None = None) -> Bound:
        """Fix the rule for pictures whose unperturbed `output` is given.

        `kind` is the head's kind, `labels` the class names, `truth` the true labels of the pictures (numbers or names),
        `embed` gives the embedding of a reference picture. Raises XaiError where the rule does not fit the output.
        """
        if self.function is not None:
            return Bound(self.function, (self.text,) * len(output))
        word, _, rest = self.text.partition(":")
        if word == "embedding":
            return _embedding(output, rest, embed)
        if word == "pixel":
            return _pixel(output, rest)
        if word == "mask" or (self.text == "top1" and kind == "map"):
            return _mask(output, rest, labels)
        if output.ndim != 2:
            raise error("the target of a network whose output has places", "pixel:X,Y,C or mask:CLASS", repr(self.text),
                        "Name one with --target")
        classes, versus = self._classes(output, labels, truth)
        skip: tuple[bool, ...] = ()
        if self.unless:
            other, _ = Target(self.unless)._classes(output, labels, truth)
            skip = tuple((other == classes).tolist())
        one = kind == "regression" and output.shape[1] == 1
        names = tuple("the output" if one else _name(c, labels) for c in classes.tolist())
        if versus is not None:
            names = tuple(f"{a} - {_name(b, labels)}" for a, b in zip(names, versus.tolist(), strict=True))
        return of_classes(classes, names, versus, skip)

    def _classes(self, output: Tensor, labels: Labels, truth: Truth) -> tuple[Tensor, Tensor | None]:
        n, count = output.shape
        if self.text == "top1":
            return output.argmax(1), None
        if match := re.fullmatch(r"rank:(\d+)", self.text):
            rank = int(match[1])
            if not 1 <= rank <= count:
                raise error("the rank of a target", f"from 1 to {count}", rank, "Name a smaller rank")
            return output.topk(rank, 1).indices[:, -1], None
        if self.text == "label":
            return torch.tensor([_truth(t, labels, count) for t in _known(truth, n)], device=output.device), None
        if " - " in self.text and find_class(self.text, labels, count) is None:
            left, right = (Target(side)._classes(output, labels, truth)[0] for side in _sides(self.text, labels, count))
            return left, right
        return torch.full((n,), need_class(self.text, labels, count), device=output.device), None


def _sides(text: str, labels: Labels, count: int) -> tuple[str, str]:
    """The two sides of a contrast; a minus with blanks may also be part of a class name."""
    parts = text.split(" - ")
    for i in range(1, len(parts)):
        left, right = (" - ".join(side).strip() for side in (parts[:i], parts[i:]))
        if all(" - " not in side or find_class(side, labels, count) is not None for side in (left, right)):
            return left, right
    raise error("a contrast", 'of two sides, "a - b"', repr(text), "Name two classes")


def parse_targets(text: str) -> list[Target]:
    """The targets that a person named: `top3` is three, one a rank; `label+top1` is two, one map where they agree."""
    text = text.strip()
    if not text:
        raise error("the target", f"one of {FORMS}", "nothing", "Name one with --target")
    if (match := re.fullmatch(r"top(\d+)", text)) and text != "top1":
        if not 1 <= int(match[1]) <= 50:
            raise error("the number of top classes", "from 1 to 50", match[1], "Name fewer")
        return [Target(f"rank:{rank}") for rank in range(1, int(match[1]) + 1)]
    if text == "label+top1":
        return [Target("label"), Target("top1", unless="label")]
    return [Target(text)]


def of_classes(classes: Tensor, names: tuple[str, ...], versus: Tensor | None = None,
               skip: tuple[bool, ...] = ()) -> Bound:
    """The raw logit of a class per picture, or the difference of two: classes, versus (n,)."""

    def score(output: Tensor) -> Tensor:
        one = output.gather(1, classes[:, None])[:, 0]
        return one if versus is None else one - output.gather(1, versus[:, None])[:, 0]

    return Bound(score, names, classes, versus, skip)


def find_class(text: str, labels: Labels, count: int) -> int | None:
    """The class number that `class:N` or a name means, or None.

    A name is taken as it is spelled, else without regard to case and underscores (ImageNet has a Cardigan and a
    cardigan). Raises XaiError where several classes bear it.
    """
    if match := re.fullmatch(r"class:(\d+)", text):
        return int(match[1]) if int(match[1]) < count else None
    plain = text.strip().lower().replace("_", " ")
    exact = [i for i, name in enumerate((labels or ())[:count]) if name == text.strip()]
    hits = exact or [i for i, name in enumerate((labels or ())[:count]) if name.lower().replace("_", " ") == plain]
    if len(hits) > 1:
        raise error("a class name", "that of one class", f"{text!r}, which classes {', '.join(map(str, hits))} bear",
                    f"Write class:{hits[0]} or class:{hits[1]}")
    return hits[0] if hits else None


def need_class(text: str, labels: Labels, count: int) -> int:
    """The class number that the text means; raises XaiError with near names."""
    found = find_class(text, labels, count)
    if found is not None:
        return found
    if text.startswith("class:"):
        raise error("the class number", f"from 0 to {count - 1}", text[6:], f"The model has {count} classes")
    hint = did_you_mean(text, labels) if labels else f"This model has no class names: use class:0 to class:{count - 1}."
    raise error("the target", f"one of {FORMS}", repr(text),
                hint or "`xai models info SPEC --json` lists the class names")


def _truth(value: int | str, labels: Labels, count: int) -> int:
    if isinstance(value, int):
        return need_class(f"class:{value}", labels, count)
    return need_class(value, labels, count)


def _known(truth: Truth, n: int) -> list[int | str]:
    known = [t for t in truth if t is not None]
    if len(known) < n or not n:
        raise error("target label", "used with pictures whose labels are known", "pictures without labels",
                    "Use top1, or give a labelled source (a folder per class, COCO, VOC or CSV annotations, a Parquet "
                    "file with a label column)")
    return known


def _name(index: int, labels: Labels) -> str:
    return labels[index] if labels and index < len(labels) else f"class {index}"


def _pixel(output: Tensor, rest: str) -> Bound:
    try:
        x, y, channel = (int(v) for v in rest.split(","))
    except ValueError:
        raise error("a pixel target", "pixel:X,Y,C in the output's pixels", repr(rest),
                    "For example pixel:10,20,0") from None
    if output.ndim != 4:
        raise error("a pixel target", "used on a network that yields a picture or map", f"an output of shape "
                    f"{tuple(output.shape)}", "Name a class instead")
    c, h, w = output.shape[1:]
    if not (0 <= x < w and 0 <= y < h and 0 <= channel < c):
        raise error("the pixel target", f"inside {w} x {h} with {c} channels", rest, "Name a place inside the output")
    return Bound(lambda out: out[:, channel, y, x], (f"pixel {x},{y} of channel {channel}",) * len(output))


def _mask(output: Tensor, rest: str, labels: Labels) -> Bound:
    if output.ndim != 4:
        raise error("a mask target", "used on a network that yields a class map",
                    f"an output of shape {tuple(output.shape)}", "Name a class instead")
    winner = output.argmax(1)
    if rest:
        chosen = torch.full((len(output),), need_class(f"class:{rest}" if rest.isdigit() else rest, labels,
                                                       output.shape[1]), device=output.device)
    else:
        chosen = torch.stack([row.flatten().bincount(minlength=output.shape[1]).argmax() for row in winner])
    return _region(chosen, winner == chosen[:, None, None], tuple(_name(int(c), labels) for c in chosen))


def _region(classes: Tensor, region: Tensor, names: tuple[str, ...]) -> Bound:
    """The sum of a class's logits over a fixed region: classes (n,), region (n, h, w) bool."""

    def score(out: Tensor) -> Tensor:
        return (out[torch.arange(len(out), device=out.device), classes] * region.to(out.dtype)).sum((1, 2))

    def chosen(rows: Sequence[int]) -> Bound:
        index = torch.as_tensor(list(rows), device=classes.device)
        return _region(classes[index], region[index], tuple(names[i] for i in rows))

    return Bound(score, tuple(f"the region of {name}" for name in names), chosen=chosen)


def _embedding(output: Tensor, reference: str, embed: Callable[[str], Tensor] | None) -> Bound:
    if embed is None or not reference:
        raise error("an embedding target", "embedding:PICTURE, a picture that the model can embed", repr(reference),
                    "Name a picture file after the colon")
    other = embed(reference).to(output)
    return Bound(lambda out: torch.nn.functional.cosine_similarity(out.flatten(1), other.flatten(1)),
                 (f"similarity to {reference}",) * len(output))
