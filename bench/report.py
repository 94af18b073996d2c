"""The measured figures as tables for people: the ratios first, each with its goal."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.figures import Spread


def show(measured: Mapping[str, Any], console: Console) -> None:
    """Prints them. One workload alone has a single table."""
    console.print(_busy(measured))
    if "dead" in measured:
        console.print(_dead(measured["dead"]))
    if "capacity" in measured:
        console.print(_capacity(measured["capacity"]))
    if "raw" not in measured:
        return
    console.print(_headlines(measured))
    for state, figures in measured["raw"]["states"].items():
        console.print(_contenders(state, figures))
    console.print(_latency(measured["raw"]["latency"]))
    if "growth" in measured:
        for name, figures in {"tuning": measured["tuning"], **measured["growth"]}.items():
            console.print(f"[bold]{name}[/bold] {_plain(figures)}", highlight=False)


_GOALS: Final = {
    "late_vs_in_order": "0.7 or more",
    "late_vs_in_order_400": "0.3 or more",
    "hot_user.throughput": "0.6 or more",
    "hot_user.others_p99": "3 or less",
    "hot_user.deferred": "0",
    "hot_user.partitioned_throughput": "0.9 of even.four_vs_one",
    "hot_user.partitioned_others_p99": "1.2 or less",
    "even.four_vs_one": "",
    "eight_vs_two": "0.85 or more",
    "flood.wait": "300 or less",
    "rescore_620_vs_62": "12 or less",
    "shared_bank": "0.95 or more",
    "shared_bank_late": "1.2 or less",
    "good_among_rejected": "0.85 or more",
    "asking.everything_vs_result": "3 or less",
    "asking.everything_vs_result_alone": "3 or less",
    "asking.fresh_vs_result": "2 or less",
    "asking.flood_p99": "1.2 or less",
    "asking.flood_p99_vs_calm": "",
    "two_viewers": "0.98 or more",
    "two_viewers_cpu": "",
    "old_names": "0.5 or more",
    "old_names_vs_today": "0.5 or more",
    "consoles": "0.97 or more",
    "consoles_ms": "",
}


def _busy(measured: Mapping[str, Any]) -> Table:
    table = Table("figure", "measured", "goal", title="Busy users, late batches, devices")
    for name, goal in _GOALS.items():
        value: Any = measured
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            table.add_row(name, f"{value:.3g}", goal)
    return table


def _capacity(found: Mapping[str, Any]) -> Table:
    table = Table("of each batch", "bytes", title="What a batch leaves behind")
    for name in ("for_good", "for_30_days", "wal"):
        table.add_row(name, f"{found[name]:,.0f}")
    for name, size in sorted(found["by_part"].items(), key=lambda each: -each[1]):
        if size >= 1:
            table.add_row(f"  {name}", f"{size:,.0f}")
    for kind, count in found["messages"].items():
        table.add_row(f"messages: {kind}", f"{count:,.2f}")
    return table


def _dead(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("command", *(f"{int(letters):,}" for letters in seconds), title="Dead letters, s")
    for name in next(iter(seconds.values())):
        table.add_row(name, *(f"{each[name]:.2f}" for each in seconds.values()))
    return table


def _headlines(measured: Mapping[str, Any]) -> Table:
    table = Table("figure", "measured", "goal", title="Of the two states, the worse figure")
    waits = measured["latency_ms"]
    for figure, value, goal in (
        (
            "throughput, compared with the usual handler",
            measured["throughput_vs_usual"],
            "11 or more",
        ),
        (
            "CPU for a batch, compared with the usual handler",
            measured["worker_cpu_vs_usual"],
            "0.063 or less",
        ),
        (
            "throughput, compared with the set-based contender",
            measured["throughput_vs_set_based"],
            "2.5 or more",
        ),
        ("throughput, compared with the floor", measured["throughput_vs_floor"], "0.47 or more"),
        ("round trips for a group", measured["round_trips_per_group"], "12 at most"),
        ("ms to the result at half load, p50", waits["p50"], "under 25"),
        ("ms to the result at half load, p99", waits["p99"], "under 150"),
        (
            "ms to the result at half the usual handler's peak, p50 compared with its own",
            measured["latency_vs_usual"]["p50"],
            "1 or less",
        ),
        ("the same, p99", measured["latency_vs_usual"]["p99"], "1 or less"),
        ("ms to the result of a single message, p50", waits["alone_p50"], "no added delay"),
    ):
        table.add_row(figure, f"{value:.3g}", goal)
    return table


def _contenders(state: str, figures: Mapping[str, Any]) -> Table:
    table = Table(
        "contender", "batches/s", "ms CPU a batch", "MB", title=f"{state}: median (least to most)"
    )
    for name, each in figures["contenders"].items():
        table.add_row(
            name,
            str(Spread(**each["batches_per_second"])),
            str(Spread(**each["cpu_ms_per_batch"])) if each["memory_mb"] else "-",
            f"{each['memory_mb']:.0f}" if each["memory_mb"] else "-",
        )
    return table


def _latency(told: Mapping[str, Any]) -> Table:
    table = Table(
        *("load", "batches/s", "p50 ms", "p90", "p99", "worst"),
        title=f"From publish to result; peak {Spread(**told['peak'])} batches/s with the relay",
    )
    for each in (told["alone"], *told["loads"]):
        load = f"{each['load']:.0%}" if each["load"] else "alone"
        p50, p90, p99, worst = (Spread(**each[name]) for name in ("p50", "p90", "p99", "worst"))
        rate = each["rate"]["median"]
        table.add_row(
            load, f"{rate:.0f}", str(p50), f"{p90.median:.1f}", str(p99), f"{worst.median:.1f}"
        )
    return table


def _plain(figures: object) -> str:
    if isinstance(figures, Mapping):
        return "  ".join(f"{name} {_plain(each)}" for name, each in figures.items())
    if isinstance(figures, list):
        return "".join(f"\n  {_plain(each)}" for each in figures)
    return f"{figures:,.4g}" if isinstance(figures, float) else f"{figures}"
