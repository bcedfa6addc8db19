#!/usr/bin/env python
"""The build side's command line: from weights to a bundle. Run `vsr-build --help`, or `python build.py --help`."""

from __future__ import annotations

import sys

from vsr_trt.runtime.machine import shell

if __name__ == "__main__":
    shell.begin()  # the imports below take a while, in which Ctrl-C is to be understood already

import argparse
from collections.abc import Callable, Sequence

from vsr_trt.engines import cli as engines
from vsr_trt.engines import schedules
from vsr_trt.engines.accuracy import cli as accuracy
from vsr_trt.recipes import bundle, demo, vae_forms
from vsr_trt.recipes.acceptance import cli as acceptance
from vsr_trt.recipes.alternatives import cli as alternatives
from vsr_trt.recipes.fetch import cli as fetch
from vsr_trt.runtime import doctor
from vsr_trt.runtime.cli import terminal

_EXAMPLES = """\
where to begin:
  a try, nothing at hand        vsr-build demo
  the published weights         vsr-build fetch dloral --to weights
  engines, without a GPU        vsr-build engines BUNDLE --target sm_89 --size 1920x1080
  for a host in C++             vsr-build schedule BUNDLE --size 1920x1080
  a GPU, all measured           vsr-build gpu-acceptance

examples:
  vsr-build fetch dloral --to weights
  vsr-build bundle --sd stable-diffusion-2-1-base --checkpoint model.pkl --out BUNDLE
  vsr-build calibrate BUNDLE --clip clip.mp4
  vsr-build verify BUNDLE
  vsr-build engines BUNDLE --target sm_86,sm_89 --size 1920x1080
  vsr-build demo
  vsr-build alternatives BUNDLE --clip clip.mp4 --sd SD --checkpoint model.pkl

exit codes: 0 done, 2 option refused, 3 output not writable, 4 bundle refused, 5 weights refused, 6 export
failed, 7 a network failed while running, 9 verification failed, 10 engine cannot be built, 129 terminal lost, 130
interrupted (Ctrl-C, SIGTERM), 141 nobody read the output to its end (the work is done)
"""

PARSERS: tuple[Callable[[argparse._SubParsersAction], None], ...] = (
    fetch.add_command,
    bundle.add_command,
    accuracy.add_commands,
    engines.add_commands,
    alternatives.add_commands,
    schedules.add_command,
    vae_forms.add_command,
    demo.add_commands,
    acceptance.add_command,
)
"""In the order in which `--help` lists them."""

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fetch": fetch.run,
    "bundle": bundle.run,
    "calibrate": accuracy.calibrate,
    "verify": accuracy.verify,
    "engines": engines.run,
    "cache": engines.run,
    "diff": engines.run,
    "doctor": engines.run,
    "time": alternatives.time_way,
    "alternatives": alternatives.alternatives,
    "schedule": schedules.run,
    "vae-forms": vae_forms.run,
    "demo": demo.run_demo,
    "full-size": demo.run_full_size,
    "gpu-acceptance": acceptance.run,
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="vsr-build",
        description="Makes bundles and engines that `vsr` restores video with.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"vsr-build {doctor.own_version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in PARSERS:
        add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    options = parser().parse_args(arguments)
    as_json = getattr(options, "json", False) in (True, "-")  # alternatives names a file
    with terminal.errors(as_json=as_json) as outcome:
        outcome.code = COMMANDS[options.command](options)
    return outcome.code


if __name__ == "__main__":
    sys.exit(shell.end(main))
