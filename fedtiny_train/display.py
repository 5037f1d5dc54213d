"""What a person sees in the terminal: a progress bar on stderr and a table of the result on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

TROUBLE_LINES = 4


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def flops(count: float) -> str:
    """Return a number of FLOPs in the unit that suits it."""
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} TFLOP"


def memory_parts(memory: Mapping[str, int]) -> str:
    """Return what a device's memory is for, without the parts that are empty."""
    return ", ".join(f"{name} {size(count)}" for name, count in memory.items() if count)


@contextmanager
def bar(rounds: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show a bar over the rounds; yield what is to be called with each round's line.

    The first refusals are told one by one; with many clients that fail, a count has to do.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    # The bar appears with the first line, so that an error before it stays one line.
    progress = Progress(*columns, console=console)
    task = progress.add_task("", total=rounds, note="")
    told = untold = done = 0

    def advance(line: Mapping[str, Any]) -> None:
        nonlocal told, untold, done
        progress.start()
        done += bool(line["counted"] and line["round"])
        notes = trouble(line)
        for text in notes[: TROUBLE_LINES - told]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        shown = min(len(notes), TROUBLE_LINES - told)
        told, untold = told + shown, untold + len(notes) - shown
        note = f"accuracy {line['accuracy']:6.2%}  loss {line['loss']:.3f}"
        progress.update(task, completed=done, note=note + (f"  {untold} more refused" if untold else ""))

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()
        if untold:
            console.print(f"{untold} more refused or missed; metrics.jsonl and report.html name them all")


def trouble(line: Mapping[str, Any]) -> list[str]:
    """Return what went wrong in a round: a text for each refused client, and one if there was no quorum."""
    number = line["round"]
    texts = [f"round {number}: client {r['id']} refused: {r['reason']}" for r in line["refused"]]
    if not line["counted"]:
        good, invited = len(line["clients"]), len(line["invited"])
        texts.append(f"round {number}: no quorum, {good} of {invited} clients answered well; it changed nothing")
    return texts


def sweep_table(head: Sequence[str], rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Print what came of a sweep and where it is."""
    shown = Table(title="sweep", title_justify="left")
    for name in head:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    console.print(f"look at it: {folder / 'sweep.html'}", soft_wrap=True, highlight=False)


def table(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the result and where it is."""
    cost, spread = summary["cost"], [a for a in summary["accuracy_per_client"] if a is not None]
    rows = [
        ("accuracy", f"{summary['accuracy']:.2%} on {summary['test_samples']} test samples"),
        ("by client", f"{min(spread):.2%} to {max(spread):.2%}" if spread else "unknown"),
        ("trouble", f"{summary['refused']} answers refused, {summary['rounds_missed']} rounds without a quorum"),
        ("density", f"{summary['density']:.4f} ({summary['nonzero']:,} of {summary['weights']:,} weights)"),
        ("traffic", f"{size(cost['bytes_up'])} up, {size(cost['bytes_down'])} down, all clients and rounds"),
        ("device memory", f"{size(cost['memory_max'])} at most: {memory_parts(cost['memory'])}"),
        ("device work", f"{flops(cost['flops_max'])} in a round, at most"),
    ]
    shown = Table(title=f"{summary['method']} on {summary['data']}", show_header=False, title_justify="left")
    for row in rows:
        if row[0] != "trouble" or summary["refused"]:
            shown.add_row(*row)
    console = Console()
    console.print(shown)
    console.print(f"run folder: {folder}\nlook at it: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"next:       fedtiny-export {folder} --target list", soft_wrap=True, highlight=False)
