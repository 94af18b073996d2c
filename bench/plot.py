"""Throughput, latency and growth as PNG and SVG.

Draws in the benchmark's own environment, where matplotlib is: `python -m bench.plot FILE FOLDER`
reads the JSON object in FILE.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import environment

FOLDER: Final = Path("docs/performance")


def draw(measured: Mapping[str, Any]) -> None:
    """Draws all that was measured into `FOLDER`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(measured, file)
        file.flush()
        python = environment.ensure() / "python"
        subprocess.run([python, "-m", "bench.plot", file.name, FOLDER], check=True)


def _main(measured: Mapping[str, Any], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    # The same drawing gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "study-ingest", "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        for kind, metadata in (("svg", {"Date": None}), ("png", {})):
            figure.savefig(folder / f"{name}.{kind}", dpi=110, metadata=metadata)

    states = measured["raw"]["states"]
    figure, axes = plt.subplots(1, len(states), figsize=(11, 3.6))
    for plot, (state, figures) in zip(axes, states.items(), strict=True):
        contenders = sorted(
            figures["contenders"].items(), key=lambda each: each[1]["batches_per_second"]["median"]
        )
        medians = [each["batches_per_second"]["median"] for _, each in contenders]
        ranges = [each["batches_per_second"] for _, each in contenders]
        spans = [
            [each["median"] - each["least"] for each in ranges],
            [each["most"] - each["median"] for each in ranges],
        ]
        colors = ["tab:blue" if name.startswith("ours") else "tab:gray" for name, _ in contenders]
        bars = plot.barh([n for n, _ in contenders], medians, xerr=spans, color=colors)
        plot.bar_label(bars, fmt="%.0f", padding=6)
        plot.set(title=f"{state} progress", xlabel="batches/s", xlim=(0, max(medians) * 1.25))
    save(figure, "throughput")

    loads = measured["raw"]["latency"]["loads"]
    figure, plot = plt.subplots(figsize=(6, 3.6))
    for name in ("p50", "p90", "p99"):
        medians = [each[name]["median"] for each in loads]
        plot.plot([100 * each["load"] for each in loads], medians, "o-", label=name)
    plot.set(title="publish to result", xlabel="% of peak", ylabel="ms", ylim=(0, None))
    plot.legend()
    save(figure, "latency")

    if growth := measured.get("growth"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
        points = growth["by_batch"]
        for name, label in (("us_per_attempt", "time"), ("cpu_us_per_attempt", "worker's CPU")):
            left.plot([p["attempts"] for p in points], [p[name] for p in points], "o-", label=label)
        left.set(xscale="log", yscale="log", xlabel="attempts in a batch", ylabel="us an attempt")
        points = growth["by_rows"]["points"]
        for name, label in (("ms_per_batch", "time"), ("cpu_ms_per_batch", "worker's CPU")):
            right.plot([p["rows"] for p in points], [p[name] for p in points], "o-", label=label)
        right.set(xscale="log", xlabel="rows of attempts", ylabel="ms a batch", ylim=(0, None))
        left.legend()
        right.legend()
        save(figure, "growth")


if __name__ == "__main__":
    _main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
