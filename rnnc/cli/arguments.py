"""The grammar of the command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rnnc import __version__

STAGES = ("tree", "ir", "groups", "analysis", "plan", "cuda", "module")
"""What `--emit` can print, in the order of the stages."""

_STATUS = """\
exit status:
  0  right          1  a wrong program, or a failed test          2  a wrong command line, or a file that cannot be read
  3  a limitation of the compiler                                 70 a bug in the compiler
"""

_MAIN = f"""\
examples:
  rnnc compile gla.rnn              write gla.py: a module that needs torch, and no rnnc
  rnnc check gla.rnn                only say what is wrong
  rnnc explain gla.rnn              how it is computed, and why
  rnnc explain RNN310               what a diagnostic means
  rnnc test gla.rnn                 the compiled cell against the equations as written
  rnnc bench gla.rnn                how fast it is, beside what it could be

{_STATUS}"""

_COMPILE = f"""\
examples:
  rnnc compile gla.rnn                      write gla.py
  rnnc compile gla.rnn -o model/gla.py      write another file
  rnnc compile cells/*.rnn -o model/        one module for each file
  rnnc compile gla.rnn -o -                 write to standard output
  cat gla.rnn | rnnc compile - -o gla.py    read standard input
  rnnc compile gla.rnn --emit ir,plan       print what the stages made of it, and write no module

An output is replaced in one step, and stays as it was where something fails.

{_STATUS}"""

_CHECK = f"""\
examples:
  rnnc check gla.rnn
  rnnc check --strict cells/*.rnn           a claim that can be neither proved nor refuted is an error
  rnnc check --format json gla.rnn          {{"diagnostics": [{{"code", "severity", "file", "line", "column",
                                            "end_line", "end_column", "message", "help"}}]}}
                                            (columns count from 1, ends are exclusive)

{_STATUS}"""

_EXPLAIN = f"""\
examples:
  rnnc explain gla.rnn                      groups, kernels and the reasons for them, ranges, spectra, shapes
  rnnc explain --format json gla.rnn        {{"groups": [{{"states", "family", "certificate", "kernel", "reason"}}],
                                            "cells": [...], ...}}
  rnnc explain RNN310                       the page of a diagnostic

{_STATUS}"""

_TEST = f"""\
examples:
  rnnc test gla.rnn
  rnnc test gla.rnn --cell GLA --cases 200 --seed 1

Compares outputs, final states and all gradients with the interpreter, which runs the equations as written: at odd
lengths, in each dtype, with the sequence split, stepped and packed. Needs torch.

{_STATUS}"""

_BENCH = f"""\
examples:
  rnnc bench gla.rnn
  rnnc bench gla.rnn --set D=2048,H=8 --batch 4 --lengths 1024,16384 --dtype bfloat16
  rnnc bench gla.rnn --backends torch,triton --json gla.json --plot gla.png

Times the cell forward, and forward with backward: by each backend of its module, by torch.compile of a loop over its
tokens, and by other libraries' scans where they are installed and apply. Numbers are checked against the interpreter
before anything is timed. GB/s count the bytes that must move: docs/bench.md. Needs torch.

{_STATUS}"""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that says which help to read."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\nTry `{self.prog} --help`.\n")


def parser() -> Parser:
    """The command line's parser."""
    main = Parser(
        prog="rnnc",
        description="Compile recurrences, as written on a whiteboard, to PyTorch modules.",
        epilog=_MAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    main.add_argument("--version", action="version", version=f"rnnc {__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, summary: str, epilog: str) -> Parser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    one = command("compile", "write the PyTorch module of a program", _COMPILE)
    _files(one)
    one.add_argument(
        "-o", "--output", metavar="OUT", help="file to write, `-` for standard output; of several files, a folder"
    )
    one.add_argument(
        "--emit",
        type=_stages,
        metavar="STAGE,...",
        help=f"print these instead of writing the module, to OUT where given: {', '.join(STAGES)}",
    )
    one.add_argument(
        "--target",
        choices=("triton", "torch"),
        default="triton",
        help="PyTorch, and Triton kernels for what has them; or PyTorch alone (default: triton)",
    )
    _cell(one)
    _strict(one)

    one = command("check", "say what is wrong with a program", _CHECK)
    _files(one)
    _format(one)
    _cell(one)
    _strict(one)

    one = command("explain", "say how a program is computed and why, or what a diagnostic means", _EXPLAIN)
    one.add_argument("topic", metavar="FILE|CODE", help="a program (`-` for standard input), or a code such as RNN310")
    _format(one)
    _cell(one)
    _strict(one)

    one = command("test", "compare a compiled program with its equations", _TEST)
    one.add_argument("file", metavar="FILE", help="a program (`-` for standard input)")
    _cell(one)
    _strict(one)
    one.add_argument(
        "--cases", type=_positive, default=24, metavar="N", help="random cases of each property (default: 24)"
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of the random cases (default: 0)")
    one.add_argument("--backend", default="auto", metavar="NAME", help="the backend to test (default: auto)")
    one.add_argument("--device", default="cpu", metavar="NAME", help="where to run (default: cpu)")

    one = command("bench", "time a compiled program", _BENCH)
    one.add_argument("file", metavar="FILE", help="a program (`-` for standard input)")
    _cell(one)
    _strict(one)
    one.add_argument("--device", metavar="NAME", help="where to run (default: cuda where there is one, else cpu)")
    one.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32", help="(default: float32)"
    )
    one.add_argument("--batch", type=_positive, default=8, metavar="N", help="sequences in a call (default: 8)")
    one.add_argument(
        "--lengths",
        type=_lengths,
        default=(256, 1024, 4096),
        metavar="T,...",
        help="tokens of a sequence (default: 256,1024,4096)",
    )
    one.add_argument(
        "--set", type=_sizes, default={}, metavar="D=512,...", help="sizes and consts other than the declared ones"
    )
    one.add_argument("--backends", type=_names, metavar="NAME,...", help="time only these")
    one.add_argument(
        "--seconds",
        type=_positive,
        default=60,
        metavar="N",
        help="about so long is timed; compiling and checks come on top (default: 60)",
    )
    one.add_argument("--json", metavar="OUT", help="write the results there")
    one.add_argument("--plot", metavar="OUT", help="draw tokens/s over T there, as PNG (needs matplotlib)")
    return main


def _files(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a program (`-` for standard input)")


def _cell(parser: Parser) -> None:
    parser.add_argument("--cell", metavar="NAME", help="this cell of a file that holds several")


def _strict(parser: Parser) -> None:
    parser.add_argument("--strict", action="store_true", help="make an undecided claim an error")


def _format(parser: Parser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report (default: text)")


def _stages(text: str) -> tuple[str, ...]:
    chosen = {name.strip() for name in text.split(",")}
    if unknown := sorted(chosen - set(STAGES)):
        raise argparse.ArgumentTypeError(f"no such stage: {', '.join(unknown)} (valid: {', '.join(STAGES)})")
    return tuple(stage for stage in STAGES if stage in chosen)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a whole number above 0: {text!r}")
    return int(text)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in _names(text)}))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _sizes(text: str) -> dict[str, int | float]:
    chosen: dict[str, int | float] = {}
    for part in _names(text):
        name, _, value = part.partition("=")
        try:
            chosen[name] = int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not NAME=NUMBER: {part!r}") from None
    return chosen
