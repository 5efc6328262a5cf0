"""Write the generated parts of README.md: `python tests/readme_tables.py` prints them, `--write` puts them in place.

Each stands between `<!-- NAME -->` and `<!-- end of NAME -->`. `methods` is read from the analyzers' files, `shipped`
from the cards of the shipped models, the others from the tables in examples/tables/ that their commands wrote (nothing
where there is none).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as a script, only this folder is on the path

from xai import catalog  # noqa: E402  # needs the line above
from xai.zoo import shipped as shipped_models  # noqa: E402

README = ROOT / "README.md"
TABLES = ROOT / "examples/tables"


def reference(docstring: str) -> str:
    """The first paper of an analyzer's docstring, up to its number, in one line; "" where it names none."""
    found = re.search(r"^Reference\s+(.+(?:\n {4,}.+)*)", docstring, re.MULTILINE)
    text = " ".join(found[1].split()) if found else ""
    numbered = re.match(r".*?(?:arXiv:|doi:)[^\s,;]+", text)
    return numbered[0] if numbered else text


def methods() -> str:
    """One row a method, grouped by kind as `xai methods list` shows them."""
    lines = ["| method | kind | what it shows | source |", "| --- | --- | --- | --- |"]
    for entry in catalog.entries().values():
        cells = (f"`{entry.name}`", entry.kind, entry.summary.rstrip("."), reference(entry.docstring))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def shipped() -> str:
    """One row a shipped model, from its card; accuracies as the card holds them."""
    lines = [
        "| model | what | parameters | file | top-1 or PSNR held out | validation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in shipped_models.SHIPPED:
        card = shipped_models.card(name)
        if card is None:
            raise ValueError(f"xai:{name} has no card")
        size = f"{card['weights']['bytes'] / 1e6:.2g} MB, {card['weights']['dtype']}"
        accuracies = (accuracy(card.get(key)) for key in ("held_out", "validation"))
        cells = (f"`xai:{name}`", card["summary"].rstrip("."), f"{card['parameters']:,}", size, *accuracies)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def accuracy(measured: dict[str, Any] | None) -> str:
    """What a card says of one set of photographs, with the 95 % interval where it has one."""
    if measured is None:
        return "not measured"
    if "psnr" in measured:  # of pictures
        plain = measured.get("against", measured.get("bicubic", measured.get("noisy")))
        gain = (f", {measured['gain']:+.2f} ({measured['low']:+.2f} to {measured['high']:+.2f})"
                if "gain" in measured else "")
        return f"{measured['psnr']:.2f} dB against {plain:.2f}{gain} of {measured['n']:,}"
    interval = f" ({100 * measured['low']:.1f} to {100 * measured['high']:.1f})" if "low" in measured else ""
    return f"{100 * measured['accuracy']:.1f} %{interval} of {measured['n']:,}"


def walk() -> str:
    """The count of examples/walk_gradcam.py: the paragraph under its table's title."""
    table = TABLES / "gradcam_walk.md"
    return table.read_text().split("\n\n")[1] if table.is_file() else ""


def table(name: str) -> str:
    """A table that a command wrote; "" where there is none."""
    file = TABLES / f"{name}.md"
    return file.read_text().strip() if file.is_file() else ""


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "shipped": shipped,
    "walk": walk,
    "benchmarks": lambda: table("benchmarks"),
    "planted": lambda: table("planted"),
    "removal": lambda: table("removal"),
}


def renewed(text: str) -> str:
    """The README with every generated part written anew. Raises ValueError where a part has no place in it."""
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md needs one part between {start.strip()} and {end.strip()}")
        head, tail = text.index(start) + len(start), text.index(end)
        text = text[:head] + make() + text[tail:]
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(renewed(README.read_text()))
    else:
        print("\n\n".join(make() for make in PARTS.values()))
