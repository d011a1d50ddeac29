"""The command line: one function a command.

Parses, calls the library, prints. Imports torch only inside the commands that need it, so help,
listings and reports come at once. An error is one line and exit status 2; a strategy that failed
while others finished is status 1; Ctrl-C is 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clmm import listing

if TYPE_CHECKING:
    from clmm.experiment import Experiment
    from clmm.study import Written

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(message)
        print(self.format_usage().strip(), file=sys.stderr)
        raise SystemExit(BAD_INPUT)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A word that is none of the choices gets the nearest one."""
        if action.choices is not None and value not in action.choices:
            from streams.catalog import nearest

            raise argparse.ArgumentError(
                action, f"there is no {value!r}{nearest(str(value), [*action.choices])}"
            )


class _Version(argparse.Action):
    """Looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"clmm {version('clmm-lab')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="clmm",
        description="Train a multimodal LLM through a stream of tasks; see what it forgets and "
        "how its safety drifts.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also CLMM_DEBUG=1)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a study, or resume it; then write its report")
    _add_study(run)
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/STUDY)")
    run.add_argument("--reveal-unsafe", action="store_true", help="store withheld texts, pictures")
    run.set_defaults(action=_run)

    validate = commands.add_parser("validate", help="check a study, all but the training")
    _add_study(validate)
    validate.set_defaults(action=_validate)

    train = commands.add_parser("train", help="train a model in stages, as its recipe says")
    train.add_argument("file", type=Path, metavar="FILE.yaml", help="model and stages")
    train.add_argument("--out", type=Path, metavar="DIR", help="default: runs/FILE")
    train.add_argument("--dry-run", action="store_true", help="print what would train and stop")
    train.set_defaults(action=_train)

    probe = commands.add_parser("probe", help="probe one model as it is")
    probe.add_argument("model", metavar="MODEL", help="nano, a folder, or a hub id")
    probe.add_argument(
        "--probes",
        metavar="A,B",
        help="names from `clmm ls probes`, or as in a study: '{name: pope, folder: POPE}' "
        "(default: the standard ones)",
    )
    probe.add_argument("--seed", type=int, default=0, help="draws the items (default: 0)")
    probe.add_argument("--items", type=int, metavar="N", help="items a split or probe")
    probe.add_argument("--out", type=Path, metavar="F.json", help="write the figures here")
    probe.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    probe.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    probe.add_argument(
        "--decoding", metavar="A,B", help="show what these change; names from `clmm ls decoding`"
    )
    probe.set_defaults(action=_probe)

    grid = commands.add_parser("sweep", help="print the commands of a grid of studies")
    grid.add_argument("grid", type=Path, metavar="GRID.yaml", help="study, grid, out")
    grid.set_defaults(action=_sweep)

    report = commands.add_parser("report", help="turn run folders into one HTML file")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("-o", "--out", type=Path, metavar="F.html", help="default: RUN/report.html")
    report.set_defaults(action=_report)

    table = commands.add_parser("table", help="print the results of run folders as one table")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    table.add_argument("--markdown", type=Path, metavar="F.md", help="write it for GitHub")
    table.add_argument("--json", type=Path, metavar="F.json", help="write all figures it is of")
    table.set_defaults(action=_table)

    kinds = commands.add_parser("ls", help="list what can be named in a study or a composition")
    kinds.add_argument("kind", nargs="?", choices=tuple(listing.KINDS), help="left out: the kinds")
    kinds.set_defaults(action=_list)

    calibrate = commands.add_parser("calibrate", help="check the instruments: how often they err")
    calibrate.add_argument("--seed", type=int, default=0, help="draws the simulations (default: 0)")
    calibrate.add_argument("--out", type=Path, metavar="F.json", help="write all results here")
    calibrate.add_argument("--markdown", type=Path, metavar="F.md", help="write a page about them")
    calibrate.add_argument("--quick", action="store_true", help="simulate less, train nothing")
    calibrate.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep trained results here (default: $XDG_CACHE_HOME/clmm or ~/.cache/clmm)",
    )
    calibrate.set_defaults(action=_calibrate)

    zoo = commands.add_parser("zoo", help="list published models; show or measure a recipe")
    zoo.add_argument("name", nargs="?", metavar="NAME", help="a recipe, or a model's name")
    zoo.add_argument("--formula", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                     help="filter: input=image,audio encoder=clip llm=vicuna output=I")  # fmt: skip
    zoo.add_argument("--out", type=Path, metavar="F.json", help="measure and write the recipes")
    zoo.set_defaults(action=_zoo)

    compose = commands.add_parser("compose", help="put a model together from components by name")
    compose.add_argument("file", type=Path, metavar="FILE.yaml", help="llm, encoders, projectors …")
    compose.add_argument("--out", type=Path, metavar="DIR", help="a new folder; without it, count")
    compose.add_argument("--dry-run", action="store_true", help="count only, whatever --out says")
    compose.add_argument("--seed", type=int, default=0, help="draws the weights (default: 0)")
    compose.set_defaults(action=_compose)

    convert = commands.add_parser("convert", help="turn a published checkpoint into a composition")
    convert.add_argument("folder", type=Path, metavar="FOLDER", help="LLaVA, BLIP-2, InternVL …")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    convert.set_defaults(action=_convert)

    build = commands.add_parser("build", help="build what the package ships")
    build.add_argument("what", choices=("nano", "painter"))
    build.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on; try --help")
    build.set_defaults(action=_build)
    return parser


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY.yaml", help="a study file, default or comparison")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings to change: seeds=[0,1] train.learning_rate=1e-3 strategies.1.budget=0.1",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option: `run STUDY --out DIR key=value`.
    stray = [word for word in rest if word.startswith("-") or "overrides" not in options]
    if stray:
        parser.error(f"there is no {stray[0]!r} in `clmm {options.command}`")
    if rest:
        options.overrides += rest
    if options.debug or os.environ.get("CLMM_DEBUG", "0") not in ("", "0"):
        return int(options.action(options))
    try:
        status = int(options.action(options))
        sys.stdout.flush()  # so that a reader that has left is known here, not at exit
        return status
    except KeyboardInterrupt:
        _complain("stopped; finished stages are kept, and the same command goes on from there")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        expected = isinstance(error, (ValueError, OSError))
        kind = "" if expected else f"{type(error).__name__}: "
        hint = "" if expected else " (--debug shows where)"
        _complain(f"{kind}{error}{hint}")
        return BAD_INPUT


def _complain(message: str) -> None:
    text = f"clmm: error: {message}"
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[31m{text}\033[0m" if coloured else text, file=sys.stderr)


def _experiment(written: Written) -> Experiment:
    study = written.study()  # before anything heavy is imported: a typing error shows at once
    _one_thread_each()
    from clmm.experiment import Experiment
    from clmm.process_memory import keep_blocks

    keep_blocks()
    return Experiment.of(study)


def _one_thread_each() -> None:
    """Settings that libraries read when they are loaded, for runs side by side."""
    if sys.platform.startswith("linux"):
        # Two one-thread runs side by side beat one run of two threads.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
    # Rows of many lengths fill two caches of compiled kernels: 0.2 GB a run at their defaults.
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "128")


def _run(options: argparse.Namespace) -> int:
    from clmm.study import read
    from reports.run_folder import RunFolderError

    written = read(options.study, options.overrides)
    experiment = _experiment(written)
    if options.dry_run:
        experiment.plan().print()
        return 0
    out = options.out or Path("runs") / written.name
    result = experiment.run(out, display=True, reveal_unsafe=options.reveal_unsafe)
    if int(os.environ.get("RANK", "0")) > 0:  # a helper process of torchrun
        return FAILED if result.failures else 0
    print()
    result.print()
    for failure in result.failures:
        if failure.details:
            print(f"\n{failure.name}:\n{failure.details.rstrip()}", file=sys.stderr)
        _complain(f"{failure.name}: {failure.message}")
    try:
        print(f"\nReport: {result.report()}")
    except RunFolderError as error:  # every strategy failed in its first stage
        print(f"\nNo report: {error}")
    return FAILED if result.failures else 0


def _validate(options: argparse.Namespace) -> int:
    from clmm.study import read

    _experiment(read(options.study, options.overrides)).plan().print()
    print(f"\n{options.study}: good")
    return 0


def _probe(options: argparse.Namespace) -> int:
    # Threads that spin while they wait for one another take the cores from whatever else runs, and
    # then wait for it: 602 items of existence took 27 to 97 s on two busy cores, and 6 to 11 s so.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
    from clmm import probe_command

    return probe_command.run(options)


def _train(options: argparse.Namespace) -> int:
    from clmm import train_command

    return train_command.run(options)


def _sweep(options: argparse.Namespace) -> int:
    from clmm.sweep import sweep

    for command in sweep(options.grid):
        print(command)
    return 0


def _report(options: argparse.Namespace) -> int:
    from reports.html import write_report

    single = options.runs[0] if len(options.runs) == 1 else Path()
    print(write_report(options.runs, options.out or single / "report.html"))
    return 0


def _table(options: argparse.Namespace) -> int:
    import json

    from clmm.result import print_results
    from reports import export, table

    for name in ("markdown", "json"):
        path = getattr(options, name)
        if path is not None and path.is_dir():
            raise ValueError(f"--{name}: {path} is a folder; name a file")
    found = table.read(options.runs)
    if options.markdown is not None:
        _write(options.markdown, export.markdown(found))
    if options.json is not None:
        _write(options.json, json.dumps(export.record(found), indent=1, ensure_ascii=False) + "\n")
    print_results(found)
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    import json

    for name in ("out", "markdown"):
        path = getattr(options, name)
        if path is not None and path.is_dir():
            raise ValueError(f"--{name}: {path} is a folder; name a file")
    _one_thread_each()
    from clmm.calibration import calibrate
    from safety import calibration_page

    found = calibrate(seed=options.seed, quick=options.quick, cache=options.cache)
    print(calibration_page.text(found), end="")
    if options.out is not None:
        _write(options.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if options.markdown is not None:
        _write(options.markdown, calibration_page.page(found))
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def _zoo(options: argparse.Namespace) -> int:
    from clmm import zoo

    return zoo.run(options.name, formula=options.formula, out=options.out)


def _list(options: argparse.Namespace) -> int:
    listing.show(options.kind)
    return 0


def _compose(options: argparse.Namespace) -> int:
    from clmm import compose_command

    return compose_command.run(options)


def _convert(options: argparse.Namespace) -> int:
    from clmm.converting import print_converted

    print_converted(options.folder, options.out)
    return 0


def _build(options: argparse.Namespace) -> int:
    if options.what == "painter":
        from clmm.nano import painter

        return painter.main(options.arguments)
    from clmm.nano import build

    return int(build.main(options.arguments) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
