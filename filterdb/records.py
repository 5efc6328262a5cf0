"""A collected layer: its model, where it stands, the sums of its filters; as a row of a table and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from filterdb import measures
from filterdb.banks import Bank, Layer, banks
from filterdb.sums import BINS, MOMENTS, Sums, layer_sums
from xai.model import Model


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model beside its filters."""

    spec: str
    architecture: str = ""
    task: str = ""
    dataset: str = ""
    training: str = ""
    precision: str = ""
    weights_hash: str = ""


@dataclass(frozen=True)
class Entry:
    """A layer of a model with the sums of its filters (None: left out); key: the model and layer_id that a database
    calls it by."""

    facts: Facts
    layer: Layer
    sums: Sums | None = None
    orthogonality: float | None = None
    key: tuple[str, int] = ("", -1)

    @property
    def counted(self) -> Sums:
        """The sums of a layer that is not left out."""
        assert self.sums is not None
        return self.sums

    @property
    def finite(self) -> bool:
        """Whether all its weights are numbers."""
        return bool(np.isfinite(self.counted.raw_gram).all())

    @cached_property
    def entropy(self) -> float | None:
        """H of the weights as they are."""
        return measures.raw_entropy(self.counted)

    @cached_property
    def clean_entropy(self) -> float | None:
        """H of the scaled filters that are not sparse."""
        return measures.clean_entropy(self.counted)

    @property
    def sparsity(self) -> float | None:
        """The share of sparse filters."""
        return measures.sparsity(self.counted)

    @property
    def aliasing(self) -> float | None:
        """The share of energy above what the layer's stride can hold."""
        return measures.aliasing(self.counted.raw_gram, self.layer.k, self.layer.stride)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is seen in it, in words."""
        return measures.findings(self.layer.k, self.layer.n, self.entropy, self.sparsity)

    @property
    def degenerate(self) -> bool | None:
        """The published rule."""
        return measures.degenerate(self.layer.k, self.layer.n, self.entropy, self.sparsity)

    @property
    def decile(self) -> int | None:
        """1 to 10: [0, .1], (.1, .2], ... of the relative depth."""
        place = self.layer.depth_norm
        return None if place is None else max(1, int(np.ceil(place * 10 - 1e-9)))


def facts_of(model: Model, *, architecture: str = "", task: str = "", dataset: str = "", training: str = "") -> Facts:
    """What the model says of itself, where nothing else is given."""
    with model.opened() as module:
        kind = type(module).__name__
    return Facts(spec=model.spec, architecture=architecture or kind, task=task or model.head.kind,
                 dataset=dataset or "unknown", training=training or ("random" if model.random_weights else "trained"),
                 precision=str(model.dtype).removeprefix("torch."), weights_hash=model.weights_hash)


def entry_of(facts: Facts, bank: Bank) -> Entry:
    """The sums of one layer."""
    return Entry(facts, bank.layer, layer_sums(bank.filters, bank.layer.k), measures.orthogonality(bank.weight))


def entries(model: Model, folded: bool = False, **told: str) -> Iterator[tuple[Entry, Bank | None]]:
    """Every layer of a model, those left out last and without a bank. told: see `facts_of`."""
    kept, left = banks(model, folded)
    facts = facts_of(model, **told)
    for bank in kept:
        yield entry_of(facts, bank), bank
    for layer in left:
        yield Entry(facts, layer), None


# --- as rows ---
def row_of(entry: Entry, layer_id: int) -> dict[str, Any]:
    """A row of the table `layers`."""
    layer = asdict(entry.layer)
    down, across = layer.pop("stride")
    row: dict[str, Any] = {**asdict(entry.facts), "layer_id": layer_id, **layer, "stride_y": down, "stride_x": across,
                           "decile": entry.decile}
    return {**row, **(_measured(entry) if entry.sums is not None else {})}


def _measured(entry: Entry) -> dict[str, Any]:
    sums, k = entry.counted, entry.layer.k
    upper = np.triu_indices(k * k)
    phase = np.flatnonzero(sums.phase)
    row: dict[str, Any] = {
        "max_abs": sums.max_abs, "n_sparse": sums.n_sparse, "sparsity": entry.sparsity, "entropy": entry.entropy,
        "entropy_clean": entry.clean_entropy, "threshold": measures.threshold(sums.n) if k == 3 else None,
        "orthogonality": entry.orthogonality, "aliasing": entry.aliasing, "degenerate": entry.degenerate,
        "histogram": sums.histogram.ravel(), "phase_at": phase, "phase_count": sums.phase.ravel()[phase]}
    for name in MOMENTS:
        row[name] = getattr(sums, name)[upper] if name.endswith("gram") else getattr(sums, name)
    return row


def entry_from(row: Mapping[str, Any]) -> Entry:
    """The inverse of `row_of`, of a row with its model."""
    facts = Facts(**{f.name: row[f.name] for f in fields(Facts)})
    layer = Layer(stride=(row["stride_y"], row["stride_x"]),
                  **{f.name: row[f.name] for f in fields(Layer) if f.name != "stride"})
    key = (row["model"], row["layer_id"])
    if row["histogram"] is None:
        return Entry(facts, layer, key=key)
    kk = layer.k**2
    upper = np.triu_indices(kk)
    moments = {}
    for name in MOMENTS:
        moments[name] = np.array(row[name], np.float64)
        if name.endswith("gram"):
            gram = np.zeros((kk, kk))
            gram[upper] = moments[name]
            moments[name] = gram + np.triu(gram, 1).T
    phase = np.zeros(BINS * BINS, np.int64)
    phase[np.array(row["phase_at"], np.int64)] = row["phase_count"]
    sums = Sums(layer.k, layer.n, row["n_sparse"], row["max_abs"], phase=phase.reshape(BINS, BINS),
                histogram=np.array(row["histogram"], np.int64).reshape(kk, BINS), **moments)
    return Entry(facts, layer, sums, row["orthogonality"], key)
