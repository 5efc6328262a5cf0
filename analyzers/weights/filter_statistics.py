"""Filter statistics: what the convolution filters of a model look like, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analyzers.weights._layers import Seen, panels
from filterdb import measures
from filterdb.records import entries
from xai.analyzer import Analyzer, param
from xai.errors import error
from xai.panels import AnyPanel
from xai.result import Cost, Verdict
from xai.subject import Subject


@dataclass(frozen=True)
class FilterStatistics(Analyzer):
    """Filter statistics: how varied, sparse, orthogonal and random-like the convolution filters of each layer are.

    Of a layer's n filters k x k, as rows of W (n, k^2): the variance entropy H = -sum p log10 p, p the shares of the
    eigenvalues of cov(W); sparsity S, the share of filters all of whose |w| are at most 1 % of the layer's largest;
    orthogonality 1 - mean |cosine| between the kernels of different output channels. H stands beside that of n random
    filters, from Wishart matrices, and beside the published sigmoid T_H(n); the published rule calls a 3 x 3 layer
    degenerate where H >= T_H - 0.02, or H < 0.5 and S >= 0.14. Filters divided by their largest |w| give the principal
    components, the coefficients in the DCT basis and the mean power spectrum; the raw ones the share of energy above
    what the stride can hold, from the Gram matrix in closed form. Effective weights are read, as the forward uses them.

    Reads     one model: its square convolutions of k > 1
    Yields    a table of all layers, entropy, sparsity and orthogonality by depth, energy by frequency, components with
              what they explain, coefficient distributions, the filters of the worst layers, the layers left out
    Raises    XaiError if no layer has such filters, or layers cannot be seen
    Cost      one forward, of noise: it shows depths and effective weights
    Reference Gavrikov and Keuper 2022, "CNN Filter DB", arXiv:2203.15331; T_H and the rule: its supplement
    """

    folded: str = param("no", "whether the scale of a batch norm that follows is multiplied in", choices=("no", "yes"))
    worst: int = param(3, "layers whose filters are drawn: degenerate ones first, then those of the least entropy",
                       low=0, high=50)
    draws: int = param(400, "random layers to compare each layer's entropy with", low=20, high=100_000)

    needs = frozenset({"weights", "gradients", "hooks"})

    def cost(self, subject: Subject) -> Cost:
        """One forward a model."""
        return Cost(forwards=len(subject.models))

    def run(self, subject: Subject) -> Iterator[AnyPanel | Verdict]:
        """The panels of one model."""
        model = subject.one_model()
        found = list(entries(model, self.folded == "yes"))
        nulls: dict[tuple[int, int], np.ndarray] = {}
        seen, left = [], []
        for entry, bank in found:
            if bank is None:
                left.append(entry)
                continue
            n, k = entry.layer.n, entry.layer.k
            if (n, k) not in nulls:
                rng = measures.generator(subject.seed, self.name(), str(n), str(k))
                nulls[n, k] = measures.null_entropies(n, k, self.draws, rng)
            seen.append(Seen(entry, bank, nulls[n, k]))
        if not seen:
            why = ", ".join(dict.fromkeys(entry.layer.left_out for entry in left))
            raise error("the model", "one with square convolutions larger than 1 x 1", f"{model.spec}: {why}",
                        "Take another model")
        yield from panels(seen, left, self.worst, self.draws)
