"""The commands fedtiny-export, fedtiny-check and fedtiny-devices: arguments in, one result on stdout.

Everything heavy is imported inside the commands, so that --help answers at once. Data goes to stdout, words about
it to stderr; exit codes are listed in docs/formats.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import UsageError, run_command

if TYPE_CHECKING:
    from .board.budget import Report

OVER_BUDGET, GATE_MISSED, DIFFERS = 3, 4, 5


def _parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedtiny {__version__}")
    return parser


def export_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of fedtiny-export."""
    parser = _parser(
        "fedtiny-export",
        "Turn a run folder, an ONNX or an int8 .tflite file into model files, a firmware project and a memory report.",
        "fedtiny-export runs/2026-01-31-fedtiny-digits --target esp32",
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        help="run folder, model.onnx or int8 model.tflite (default: the newest run in runs/)",
    )
    board = parser.add_mutually_exclusive_group(required=True)
    board.add_argument("--target", metavar="BOARD", help="board id, or `list` to list the boards")
    board.add_argument("--board", type=Path, metavar="FILE.toml", help="a board file of your own, like devices/*.toml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="export folder (default: build/<board>)")
    parser.add_argument(
        "--runtime",
        choices=["ft", "tflm", "tflm-decode"],
        default="ft",
        help="what runs the model: our sparse runtime, or TensorFlow Lite Micro (C files and report, no project), "
        "also with pruned weights coded for its DECODE operator",
    )
    parser.add_argument(
        "--project",
        choices=["platformio", "plain"],
        default="platformio",
        help="kind of firmware project: PlatformIO, or C files for CubeIDE, Zephyr, nRF Connect and others",
    )
    encodings = parser.add_mutually_exclusive_group()
    encodings.add_argument(
        "--optimize",
        choices=["size", "balanced", "speed"],
        default="size",
        help="weights in the smallest encoding, in faster ones for a tenth more flash, or as far as flash has room",
    )
    encodings.add_argument(
        "--encoding",
        choices=["dense", "bitmap", "gap", "rice"],
        help="one encoding for all weights (default: for each layer the one that makes model and code smallest)",
    )
    parser.add_argument(
        "--compatible-with",
        type=Path,
        metavar="DIR",
        help="refuse a model that the firmware of this export folder would not take (an update in the field)",
    )
    _add_quantising(parser)
    parser.add_argument("--eval", type=Path, metavar="FILE.npz", help="`x` and `y` to state the accuracy on")
    parser.add_argument(
        "--converter",
        choices=["fedtiny", "tensorflow"],
        default="fedtiny",
        help="who makes model.tflite: our writer, or TensorFlow's own (extra tensorflow)",
    )
    parser.add_argument("--explain", action="store_true", help="say layer by layer what int8 loses")
    parser.add_argument("--min-accuracy", type=float, metavar="A", help="exit 4 if int8 accuracy (0 to 1) is below A")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the text report")
    options = parser.parse_args(arguments)
    sys.exit(run_command(lambda: _export(options)))


def _add_quantising(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE.npz", help="inputs `x` to take activation ranges from"
    )
    parser.add_argument(
        "--ranges",
        default="auto",
        metavar="WAY",
        help="activation ranges: minmax, percentile:SHARE or mse, of the run's histograms or the calibration "
        "(default: mse where there are histograms, else minmax)",
    )
    parser.add_argument("--equalize", action="store_true", help="equalise channels between layers (calibration)")
    parser.add_argument("--correct-bias", action="store_true", help="take back shifts of means (calibration)")


def _export(options: argparse.Namespace) -> int:
    from .board.devices import load_device, load_device_file

    if options.target == "list":
        from .board.listing import devices_command

        return devices_command(None, options.json)
    if options.explain and options.converter == "tensorflow":
        raise UsageError("--explain is for our own converter: leave out --converter")
    if options.min_accuracy is not None and not 0.0 <= options.min_accuracy <= 1.0:
        raise UsageError(f"--min-accuracy {options.min_accuracy:g}: give a share between 0 and 1")
    if options.optimize != "size" and options.runtime != "ft":
        raise UsageError(f"--optimize chooses encodings of the runtime ft, not of {options.runtime}: leave it out")
    if options.encoding is not None and options.runtime != "ft":
        raise UsageError(f"--encoding {options.encoding} is for the runtime ft: leave out --runtime or --encoding")
    if options.project == "plain" and options.runtime != "ft":
        raise UsageError(f"--project plain is for the runtime ft; --runtime {options.runtime} writes C files anyway")
    own_board = Path(options.target) if str(options.target).endswith(".toml") else options.board
    device = load_device(options.target) if own_board is None else load_device_file(own_board)
    from .export import make_export, write_export
    from .ftm.optimize import Aim
    from .quant.calibration import read_choice
    from .source import Wishes, newest_run, read_source

    given = options.source if options.source is not None else newest_run()
    wishes = Wishes(read_choice(options.ranges), options.equalize, options.correct_bias)
    source = read_source(given, calibration=options.calibration, evaluation=options.eval, wishes=wishes)
    exported = make_export(
        source,
        device,
        options.min_accuracy,
        options.runtime,
        explained=options.explain,
        converter=options.converter,
        aim=Aim(options.optimize),
        encoding=options.encoding,
    )
    said = _replaces(options.compatible_with, exported.ftm.data if exported.ftm else None)
    target = options.out or Path("build") / (device.id + ("-plain" if options.project == "plain" else ""))
    write_export(target, exported, device, source.labels, options.project, own_board)
    _print_report(exported.report, options.json)
    print(f"written to {target}", file=sys.stderr)
    for line in (*said, *exported.report.advice, *exported.report.gates):
        print(line, file=sys.stderr)
    if not exported.report.fits:
        return OVER_BUDGET
    return GATE_MISSED if exported.report.gates else 0


def _replaces(folder: Path | None, model: bytes | None) -> tuple[str, ...]:
    """What is to be said about a model that shall replace that of an export; one that cannot is refused."""
    from .board.compatible import check_compatible

    if folder is None:
        return ()
    if model is None:
        raise UsageError("--compatible-with is for the runtime ft: leave out --runtime")
    return check_compatible(folder, model)


def _print_report(report: Report, as_json: bool) -> None:
    from .board.render import plain_text

    sys.stdout.write(report.to_json() if as_json else plain_text(report))


def check_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of fedtiny-check."""
    parser = _parser(
        "fedtiny-check",
        "Build an export, run it on the board's emulator and put what was measured beside what was planned.",
        "fedtiny-check build/qemu-m4",
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="folder that fedtiny-export wrote")
    parser.add_argument("--inputs", type=Path, metavar="X.npy", help="int8 inputs to run, first axis: sample")
    parser.add_argument("--outputs", type=Path, metavar="Y.npy", help="where to write their int8 outputs")
    parser.add_argument("--log", type=Path, metavar="FILE", help="read a device's serial log instead of an emulator")
    parser.add_argument("--serial", metavar="PORT", help="listen to a board instead (extra serial), e.g. /dev/ttyACM0")
    parser.add_argument("--baud", type=int, default=115200, metavar="N", help="with --serial (default: 115200)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long to listen (default: 60)")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="compare the reports of two exports")
    parser.add_argument(
        "--tolerance", type=float, metavar="PERCENT", help="with --diff: exit 5 if a figure of B grew by more than this"
    )
    parser.add_argument("--pio", action="store_true", help="build with `pio run` instead of the compiler directly")
    parser.add_argument("--require-run", action="store_true", help="exit 6 if the board cannot be run here")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    if (options.folder is None) == (options.diff is None):
        parser.error("give one export folder, or --diff A B")
    if (options.inputs is None) != (options.outputs is None):
        parser.error("--inputs and --outputs go together")
    running = [name for name in ("inputs", "outputs", "pio", "require_run") if getattr(options, name)]
    instead = [name for name in ("log", "serial", "diff") if getattr(options, name)]
    if running and instead:
        parser.error(f"--{running[0].replace('_', '-')} is for running a firmware: leave out --{instead[0]}")
    if len(instead) > 1:
        parser.error(f"give --{instead[0]} or --{instead[1]}, not both")
    if options.tolerance is not None and not options.diff:
        parser.error("--tolerance is for --diff A B")
    if options.tolerance is not None and not options.tolerance >= 0:
        parser.error(f"--tolerance {options.tolerance:g}: give a number of per cent from 0 on")
    sys.exit(run_command(lambda: _check(options)))


def _check(options: argparse.Namespace) -> int:
    if options.diff:
        return _diff(options)
    from .board.compare import Serial, check_folder

    result = check_folder(
        options.folder,
        inputs=options.inputs,
        outputs=options.outputs,
        log=options.log,
        serial=Serial(options.serial, options.baud, options.seconds) if options.serial else None,
        use_pio=options.pio,
        require_run=options.require_run,
    )
    _print_report(result.report, options.json)
    for line in result.problems:
        print(f"error: {line}", file=sys.stderr)
    if not result.report.fits:
        return OVER_BUDGET
    return DIFFERS if result.problems else 0


def _diff(options: argparse.Namespace) -> int:
    from .board.diff import diff_folders, diff_json, diff_text

    diff = diff_folders(*options.diff)
    sys.stdout.write(diff_json(diff) if options.json else diff_text(diff))
    problems = () if options.tolerance is None else diff.grown_beyond(options.tolerance)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if options.tolerance is not None and not diff.fits[1]:
        return OVER_BUDGET
    return DIFFERS if problems else 0


def devices_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of fedtiny-devices."""
    parser = _parser(
        "fedtiny-devices",
        "List the boards, show one board's memory regions and where each number comes from, or rank all by a model.",
        "fedtiny-devices --fits runs/first",
    )
    parser.add_argument("board", nargs="?", help="board id or PlatformIO id")
    parser.add_argument(
        "--fits",
        type=Path,
        metavar="MODEL",
        help="rank the boards by how this model fits: a run or export folder, a .onnx or an int8 .tflite file",
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE.npz", help="inputs `x`, for a .onnx without ranges")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of boards, or one board")
    options = parser.parse_args(arguments)
    if options.board is not None and options.fits is not None:
        parser.error("give a board, or --fits MODEL")
    if options.calibration is not None and options.fits is None:
        parser.error("--calibration is for --fits MODEL")
    sys.exit(run_command(lambda: _devices(options)))


def _devices(options: argparse.Namespace) -> int:
    if options.fits is not None:
        from .board.fits import fits_command

        return fits_command(options.fits, options.calibration, options.json)
    from .board.listing import devices_command

    return devices_command(options.board, options.json)
