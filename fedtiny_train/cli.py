"""The command `fedtiny-train`: flags, progress on stderr, the result on stdout.

Flags are made from the tree of `options.py`. Nothing heavy is imported before the options have proven
usable, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedtiny_export.errors import FedtinyError, ToolMissingError, UsageError, nearest, run_command

from fedtiny_train.config import apply_flags, read_toml, settle
from fedtiny_train.options import Config, options

DESCRIPTION = """\
Train a network on many clients' private data, prune it while it trains, and leave a run folder
that fedtiny-export turns into firmware. Without arguments: FedTiny on the bundled 8x8 digits,
10 clients that share them unevenly, 10 % of the weights kept, in about a minute.
"""
EXAMPLES = """\
examples:
  fedtiny-train
  fedtiny-train --density 0.05 --seed 1 --out runs/five-percent
  fedtiny-train --flash-budget 8K                     FedPack, width and density chosen to fill 8 kB of flash
  fedtiny-train --method random --density 0.05        a random mask, for comparison
  fedtiny-train --data my.npz --clients 20 --partition dirichlet:0.3 --workers 2
  fedtiny-train runs/five-percent/config.toml --rounds 100
  fedtiny-train --resume runs/five-percent            go on after a stop
  fedtiny-train --sweep "seed=0,1,2 density=0.1,0.05" --out runs/sweep    every combination; goes on if repeated

Every option is also a key of CONFIG.toml, in the section it is listed under; flags win over the file.
exit codes: 0 done, 1 error, 2 usage, 6 a package is missing
"""


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line that the caller prints."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see fedtiny-train --help")


def parser() -> argparse.ArgumentParser:
    """Return the command line: the options of the tree by section, and what only a command needs."""
    made = _Parser(
        prog="fedtiny-train",
        usage="fedtiny-train [CONFIG.toml] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("config", nargs="?", metavar="CONFIG.toml", help="options from a file")
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder to make (default: runs/<date>-<method>-<data>)"
    )
    made.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run that was stopped")
    made.add_argument(
        "--sweep", metavar="TEXT", help="run every combination of options, such as 'seed=0,1,2 density=0.1,0.05'"
    )
    made.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    groups: dict[str, Any] = {}
    for section, item in options():
        if section not in groups:
            groups[section] = made.add_argument_group(f"[{section}]")
        flag = "--" + item.name.replace("_", "-")
        kind = type(item.default)
        shown = f" (default: {item.default})" if item.default not in ("", 0) or kind is bool else ""
        text = item.metadata["help"] + shown
        extra: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kind is bool:
            groups[section].add_argument(flag, action=argparse.BooleanOptionalAction, **extra)
        else:
            metavar = "{" + ",".join(item.metadata["choices"]) + "}" if item.metadata["choices"] else None
            metavar = metavar or {int: "N", float: "X", str: "TEXT"}[kind]
            groups[section].add_argument(flag, type=_typed(kind), metavar=metavar, **extra)
    return made


def _typed(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None

    return convert


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; an unknown flag is an error that names the nearest."""
    made = parser()
    known, unknown = made.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings]
        word = unknown[0].split("=")[0]
        hint = nearest(word, flags) if word.startswith("-") else ""
        raise UsageError(f"unknown argument {word!r}{hint}; see fedtiny-train --help")
    return known


def _configure(given: argparse.Namespace, flags: dict[str, Any]) -> tuple[Config, Path]:
    """Return the options of a new or a resumed run, and its folder."""
    if given.resume is None:
        start = read_toml(Path(given.config)) if given.config else Config()
        made = settle(apply_flags(start, flags))
        from fedtiny_train import runfolder

        out = given.out or runfolder.default_out(made, datetime.date.today())
        if out.exists():
            raise FedtinyError(f"{out} exists already; choose another --out, or go on with it: --resume {out}")
        return made, out
    free = {item.name for _, item in options() if not item.metadata["recorded"]}
    extra = sorted(set(flags) - free)
    if given.config or given.out or extra:
        what = given.config or ("--out" if given.out else "--" + extra[0].replace("_", "-"))
        raise UsageError(f"--resume takes everything from the run's config.toml; leave out {what}")
    from fedtiny_train import runfolder

    runfolder.check_unfinished(given.resume)
    return apply_flags(read_toml(given.resume / "config.toml"), flags), given.resume


def _train(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    flags = {k: v for k, v in vars(given).items() if k not in ("config", "out", "resume", "json", "sweep")}
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("fedtiny_train").setLevel(logging.INFO)
    if given.sweep is not None:
        return _sweep(given, flags)
    try:
        made, folder = _configure(given, flags)
        from fedtiny_train.rounds import carry_out
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    from fedtiny_train.display import bar, table

    try:
        with bar(made.train.rounds) as progress:
            summary = carry_out(made, folder, progress, given.resume is not None)
    except KeyboardInterrupt:
        if (folder / "config.toml").exists():
            print(f"stopped; go on with: fedtiny-train --resume {folder}", file=sys.stderr)
        raise
    if given.json:
        sys.stdout.write((folder / "summary.json").read_text(encoding="utf-8"))
    else:
        table(summary, folder)
    return 0


def _sweep(given: argparse.Namespace, flags: dict[str, Any]) -> int:
    from fedtiny_train import sweep

    if given.resume is not None:
        raise UsageError("--resume goes on with one run; repeat the --sweep with its --out to go on with a sweep")
    start = read_toml(Path(given.config)) if given.config else Config()
    asked = sweep.read_sweep(given.sweep, apply_flags(start, flags))
    out = given.out or Path("runs") / f"{datetime.date.today().isoformat()}-sweep"
    try:
        importlib.import_module("fedtiny_train.rounds")
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    from fedtiny_train import sweep_page
    from fedtiny_train.display import bar, sweep_table

    try:
        results = sweep.carry_out(asked, out, bar, lambda text: print(text, file=sys.stderr))
    except KeyboardInterrupt:
        print(f"stopped; go on with the same command and --out {out}", file=sys.stderr)
        raise
    text = sweep.write(out, asked, results)
    if given.json:
        sys.stdout.write(text)
    else:
        sweep_table(*sweep_page.rows_of(results, brief=True), out)
    if failed := [one for one in results if "error" in one]:
        raise FedtinyError(f"{len(failed)} of {len(results)} runs failed, the first: {failed[0]['error']}")
    return 0


def _missing(error: ModuleNotFoundError) -> ToolMissingError:
    return ToolMissingError(f"training needs the package {error.name}; pip install 'fedtiny[train]'")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    raise SystemExit(run_command(lambda: _train(given)))
