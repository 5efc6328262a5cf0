"""filter_statistics: its table beside sums made by hand, planted layers called what they are, depth, other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from filterdb import measures
from filterdb.sums import dct
from xai import catalog
from xai.errors import XaiError
from xai.model import Model
from xai.panels import Curve, Matrix, Number, Picture, Table
from xai.result import Result
from xai.subject import Subject


def analysed(module: nn.Module, seed: int = 0, **fields: Any) -> Result:
    model = Model(module.eval(), mean=[0.4] * 3, std=[0.3] * 3, size=12)
    return catalog.find("filter_statistics")(**fields)(Subject((model,), None, seed=seed))


def panel(result: Result, key: str) -> Any:
    return next(one for one in result.panels if one.key == key)


def column(result: Result, name: str) -> dict[str, Any]:
    table = panel(result, "layers")
    at = [c.name for c in table.columns].index(name)
    return {row[0]: row[at] for row in table.rows}


def planted() -> nn.Sequential:
    """Four layers of 64 to 64: random, of one pattern and half of it zero, varied, and 1 x 1."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, stride=2, padding=1),
                            nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        basis = torch.tensor(dct(3), dtype=torch.float32)
        with torch.no_grad():
            net[1].weight.copy_((torch.randn(64 * 64, 1) * basis[:1]).reshape(64, 64, 3, 3) +
                                0.01 * torch.randn(64, 64, 3, 3))
            net[1].weight[:32] = 0
            net[2].weight.copy_((torch.randn(64 * 64, 9) * 0.75 ** torch.arange(9) @ basis).reshape(64, 64, 3, 3))
    return net


def test_planted_layers_are_called_what_they_are() -> None:
    result = analysed(planted(), worst=2)
    assert column(result, "seen") == {"0": "random-like", "1": "low entropy, sparse", "2": ""}
    assert (panel(result, "degenerate").value, panel(result, "degenerate").unit) == (2, "of 3 layers")
    assert column(result, "sparse")["1"] >= 0.5
    assert column(result, "aliasing")["0"] == 0
    assert column(result, "aliasing")["1"] < 0.3, "a smooth pattern loses little to its stride"
    assert [row[0] for row in panel(result, "left_out").rows] == ["3"]
    drawn = [one.title for one in result.panels if isinstance(one, Picture) and one.key.startswith("worst")]
    assert drawn == ["Filters of 1", "Filters of 0"]
    assert all(v.passed for v in result.verdicts)


def test_the_table_is_what_the_weights_say() -> None:
    net = planted()
    result = analysed(net)
    for name in ("0", "1", "2"):
        weight = net[int(name)].weight.detach().double().numpy()
        filters = weight.reshape(-1, 9)
        values = np.linalg.svd(filters - filters.mean(0), compute_uv=False) ** 2
        p = values / values.sum()
        assert column(result, "H")[name] == pytest.approx(-(p * np.log10(p)).sum(), abs=1e-6)
        assert column(result, "filters")[name] == len(filters)
        peaks = np.abs(filters).max(1)
        assert column(result, "sparse")[name] == np.mean(peaks <= 0.01 * peaks.max())
        assert column(result, "T_H")[name] == pytest.approx(measures.threshold(len(filters)))
    assert column(result, "random layers at most H")["0"] > 0
    assert column(result, "H over random")["0"] == pytest.approx(1, abs=0.03)
    assert column(result, "random layers at most H")["1"] == 0


def test_curves_run_along_the_depth_and_the_bands_add_up() -> None:
    result = analysed(planted())
    entropy = panel(result, "entropy")
    assert isinstance(entropy, Curve)
    np.testing.assert_allclose(entropy.x, [0, 1 / 3, 2 / 3])
    assert (entropy.low[2] <= entropy.y[2]).all()
    assert (entropy.y[2] <= entropy.high[2]).all()
    bands = panel(result, "bands")
    assert isinstance(bands, Matrix)
    np.testing.assert_allclose(bands.values.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(bands.values[0], np.array([1, 3, 5, 7]) / 16, atol=0.03)


def test_other_sizes_have_entropies_but_no_rule() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Conv2d(3, 16, 5), nn.Conv2d(16, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = analysed(net)
    assert panel(result, "degenerate").value is None
    assert column(result, "T_H") == {"0": None, "1": None}
    assert column(result, "H over random")["1"] == pytest.approx(1, abs=0.02)
    assert {one.key for one in result.panels} >= {"k5_pca", "k2_pca", "k5_phase", "k2_spectrum"}


def test_folding_changes_what_a_norm_scales() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            net[1].weight.copy_(torch.cat([torch.full((16,), 1e-4), torch.ones(16)]))
    assert column(analysed(net), "sparse") == {"0": 0}
    assert column(analysed(net, folded="yes"), "sparse") == {"0": 0.5}


def test_a_model_without_such_layers_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(XaiError, match="one with square convolutions larger than 1 x 1; got .*: 1 x 1"):
        analysed(net)


def test_a_layer_of_zeros_fails_the_check_and_one_filter_has_no_entropy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 3, groups=1), nn.Conv2d(1, 1, 3),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.zero_()
    result = analysed(net)
    verdicts = {verdict.name: verdict for verdict in result.verdicts}
    assert verdicts["finite"].passed
    assert not verdicts["varied"].passed
    assert "1 of 3 layers" in verdicts["varied"].sentence
    assert column(result, "H")["2"] is None
    assert column(result, "sparse") == {"0": 1, "1": 0, "2": 0}
    assert isinstance(panel(result, "filters"), Number)
    assert isinstance(panel(result, "layers"), Table)
