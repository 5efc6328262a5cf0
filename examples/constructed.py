"""What every method makes of networks whose answer is known: `python examples/constructed.py` writes the table.

The networks' weights are set by hand (`xai/constructed.py`), so that it is known which pixels speak for the score. The
table, examples/tables/constructed.md, is what tests/test_constructed.py asserts, failures included. `--out FOLDER`
writes it elsewhere, `--smoke` asks a few methods and writes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xai.constructed import answers, known, methods

TABLES = Path(__file__).parent / "tables"


def table(few: bool = False) -> str:
    """A row a method, a column a network."""
    chosen = [one for one in methods() if not few or one.name() in ("saliency", "integrated_gradients")]
    cases = known()
    found = [answers(chosen, case) for case in cases]
    lines = ["| method | " + " | ".join(case.name for case in cases) + " |", "| --- " * (1 + len(cases)) + "|"]
    for k, method in enumerate(chosen):
        lines.append(f"| {method.name()} | " + " | ".join(column[k].judged.outcome for column in found) + " |")
    stories = "\n".join(f"- {case.name}: {case.story}." for case in cases)
    return "\n".join(lines) + (
        "\n\nexact: the map equals what each pixel adds on the straight way from black, or its block's Shapley value. "
        "found: 70 % of its energy or more lies where the score is decided. flat: it is the same everywhere. astray: "
        "none of these. refused: the method cannot run there.\n\n"
        "Why: Grad-CAM, Grad-CAM++, XGrad-CAM, Score-CAM and Ablation-CAM weigh whole channels, which light up "
        "wherever they are active; Finer-CAM explains this class less the other. Gradients are flat under saturation "
        "and where either is enough, and follow the slope at a step; so does LRP at both ends. LayerCAM and guided "
        "backpropagation drop what is negative, hence cancellation. VarGrad is zero on what is linear. RISE smears "
        "over its cells and is offset by a constant, extremal perturbation weighs its area against small logits.\n\n"
        f"{stories}\n")


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TABLES, help="folder of the table")
    parser.add_argument("--smoke", action="store_true", help="a few methods, nothing is written")
    asked = parser.parse_args()
    text = table(asked.smoke)
    print(text)
    if not asked.smoke:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "constructed.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
