"""The grammar of model specs: round trip, canonical form, and one sentence for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xai.errors import XaiError
from xai.zoo import names
from xai.zoo.loading import resolve
from xai.zoo.spec import OPTIONS, SOURCES, Spec, parse

VALUES = {name: st.just(option.example) for name, option in OPTIONS.items()} | {
    "labels": st.text(min_size=1).filter(lambda text: text.strip() == text and text.isprintable()),
    "layer": st.from_regex(r"[a-z][a-z0-9_.%&=:]{0,12}", fullmatch=True),
    "size": st.from_regex(r"[1-9]\d{0,2}(x[1-9]\d{0,2})?", fullmatch=True),
    "grid": st.from_regex(r"[1-9]\d?x[1-9]\d?", fullmatch=True),
}
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
NAME = st.from_regex(r"[A-Za-z0-9_][\w./-]{0,20}", fullmatch=True)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    source = draw(st.sampled_from(sorted(SOURCES)))
    revision = draw(st.sampled_from(("", "main", "V1_2"))) if source in ("torchvision", "hf-hub", "hf") else ""
    chosen = draw(st.sets(st.sampled_from(sorted(OPTIONS))))
    return Spec(source, draw(NAME), revision, {name: draw(VALUES[name]) for name in chosen})


@UNHURRIED
@given(specs())
def test_a_spec_survives_its_own_text(spec: Spec) -> None:
    again = parse(str(spec))
    assert again == spec
    assert str(again) == str(spec)


@UNHURRIED
@given(st.text())
def test_any_text_is_a_spec_or_one_sentence(text: str) -> None:
    try:
        spec = parse(text)
    except XaiError:
        return
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("resnet50", "torchvision:resnet50"),
        ("photo20", "xai:photo20"),
        ("vit_tiny_patch16_224.augreg_in21k", "timm:vit_tiny_patch16_224.augreg_in21k"),
        ("TIMM:resnet18", "timm:resnet18"),
        ("resnet18?mean=0&size=64&std=1", "torchvision:resnet18?size=64&mean=0&std=1"),
        ("net.onnx?range=0-255", "net.onnx?range=0-255"),
        ("folder/net.pt2", "folder/net.pt2"),
        (r"C:\nets\net.ts", r"C:\nets\net.ts"),
        ("file:my nets/a@b.py:make", "file:my nets/a@b.py:make"),
        ("hf:./a@b", "hf:./a@b"),
        ("hf:owner/name@main", "hf:owner/name@main"),
    ],
)
def test_the_canonical_form(text: str, canonical: str) -> None:
    assert str(resolve(text)) == canonical
    assert str(resolve(canonical)) == canonical


def test_the_values_of_options() -> None:
    read = parse("r?size=64x96&mean=0.5,0.25,1&std=2&range=-1-1&grid=7x9&resize=70&channels=4&crop=squash").read()
    assert (read.size, read.mean, read.std) == ((64, 96), (0.5, 0.25, 1.0), (2.0,))
    assert (read.range, read.grid, read.resize) == ((-1.0, 1.0), (7, 9), 70)
    assert (read.channels, read.crop, read.layer) == (4, "squash", "auto")
    assert parse("r?range=0-255").read().range == (0.0, 255.0)
    assert parse("r?size=64").read().size == (64, 64)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The model must be a spec|the model must be a spec"),
        ("torchvision:", "a source and an id"),
        ("hf:name@", "a source and an id"),
        ("keras:vgg16", "the source of a model must be one of"),
        ("tim:resnet18", "Did you mean timm"),
        ("resnet18?siez=3", "Did you mean size"),
        ("resnet18?size", "no value"),
        ("resnet18?size=0", "the option size must be"),
        ("resnet18?size=3.5", "the option size must be"),
        ("resnet18?grid=14", "the option grid must be"),
        ("resnet18?mean=a,b,c", "the option mean must be"),
        ("resnet18?mean=nan", "the option mean must be"),
        ("resnet18?range=1-0", "the option range must be"),
        ("resnet18?crop=left", "center or squash"),
        ("resnet18?size=3&size=4", "given once"),
        ("weights.safetensors", "--model resnet50 --weights weights.safetensors"),
        ("net.py:make", "file:net.py:make"),
    ],
)
def test_mistakes(text: str, sentence: str) -> None:
    with pytest.raises(XaiError, match=sentence):
        parse(text).read()


def test_listed_names_are_those_of_the_packages() -> None:
    from xai.torchvision_import import ensure_torchvision

    torchvision = ensure_torchvision()
    import timm

    assert list(names.names("torchvision")) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert list(names.names("timm")) == sorted(timm.list_models())


def test_listings() -> None:
    everything = names.list_models()
    assert everything[0] == "xai:photo20"
    assert "torchvision:resnet50" in everything
    assert "timm:resnet50" in everything
    assert names.list_models("torchvision", "vit_*") == [
        f"torchvision:vit_{n}" for n in ("b_16", "b_32", "h_14", "l_16", "l_32")
    ]
    assert names.list_models("torchvision", "SQUEEZE") == ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]
    with pytest.raises(XaiError, match="xai, torchvision, timm"):
        names.list_models("hf")


def test_listing_imports_no_torch() -> None:
    code = "import sys; from xai.zoo.names import list_models; assert list_models(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0


def test_near_names_come_from_all_sources() -> None:
    sentence = r"this package, torchvision or timm; got 'resnt50'\. Did you mean torchvision:resnet50.* timm:resnet50"
    with pytest.raises(XaiError, match=sentence):
        resolve("resnt50")
    with pytest.raises(XaiError, match="xai:photo20"):
        resolve("photo2")
