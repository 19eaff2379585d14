"""`sedaq`: finds the verb, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import codecs
import importlib
import io
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Mapping

import click
from diffusers.utils.logging import disable_progress_bar

from ..errors import SedaqError
from .config import ConfigOption, add_config_file, parameters_of

VERBS = {
    "inspect": "Layers, roles, shapes, menu of formats, exact bytes.",
    "probe": "Measure what images lose when layers get few bits.",
    "fit": "Fit the predictor to the probes of a run and explain it.",
    "search": "Choose formats for a budget, or the whole front.",
    "apply": "Write the quantized model of a plan, tuned if asked.",
    "evaluate": "Measure the images of a model.",
    "bench": "Measure distortion, encoding, kernels or a whole model.",
    "learn": "Teach the prior by runs of one's own.",
    "report": "Write the report of a run.",
    "watch": "What is at work in a run, and how far it is.",
    "doctor": "What is whole, missing or damaged in a run or a model.",
    "demo": "All of it on a shipped model.",
}

STDOUT = 1  # its descriptor


class _Verbs(click.Group):
    """Imports a verb's file when the verb is called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f".{name}", __package__).command
        command.name, command.short_help = name, VERBS[name]
        add_config_file(command, name, self.parameters)
        return command

    def parameters(self) -> dict[str, dict[str, str]]:
        """Of every verb."""
        return {name: parameters_of(importlib.import_module(f".{name}", __package__).command) for name in VERBS}

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SedaqError as error:
            if verb := self.get_command(ctx, ctx.invoked_subcommand or ""):
                error.args = (with_flags(str(error), flags_of(verb)),)
            raise


def flags_of(command: click.Command) -> dict[str, str]:
    """The flag of every option of a verb and its subcommands, by the name of the argument and by its own."""
    flags: dict[str, str] = {}
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        flags |= flags_of(child)
    for option in command.params:
        if isinstance(option, click.Option):
            flag = max(option.opts, key=len)
            flags |= {flag.lstrip("-").replace("-", "_"): flag, str(option.name): flag}
            if isinstance(option, ConfigOption):
                flags.setdefault(option.field, flag)
    return flags


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library with the arguments that it names in backticks as flags: "`ms_per_step`" becomes "--ms-per-step"."""
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), message)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sedaq")
@click.option("--debug", is_flag=True, help="Show a traceback where something fails.")
def cli(debug: bool) -> None:
    """Fit a diffusion model into a given size: measure what each layer can stand, choose bits, quantize, tune, and show the evidence."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    for noisy in ("diffusers", "matplotlib", "PIL", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    disable_progress_bar()  # diffusers' own, of a second while it loads a pipeline


PLAIN = {"−": "-", "–": "-", "—": "-", "×": "x", "±": "+-", "…": "...", "·": "*", "→": "->", "≤": "<=", "≥": ">=", "²": "2", "Δ": "d"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What stands for letters that a terminal cannot show."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in letters), error.end


codecs.register_error("sedaq-plain", _plainly)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 the work failed, 2 the input is wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sedaq-plain")
    # --debug may stand behind the verb as well.
    given = (["--debug"] if debug else []) + [word for word in given if word != "--debug"]
    try:
        code = cli(given, prog_name="sedaq", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.UsageError as error:
        verb = f" {error.ctx.info_name}" if error.ctx is not None and error.ctx.parent is not None else ""
        return _fail(f"sedaq{verb}: {error.format_message()} See `sedaq{verb} --help`.", 2)
    except click.ClickException as error:
        return _fail(f"sedaq: {error.format_message()}", 2)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D, but nothing is asked here
            return _failed(error.__cause__, debug)
        ended = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        return _fail("sedaq: stopped; what is finished is kept, run the same command again to go on", 143 if ended else 130)
    except SedaqError as error:
        if debug:
            raise
        return _fail(f"sedaq: {error}", error.exit_code)
    except BrokenPipeError as error:
        if not _reader_left():
            return _failed(error, debug)
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return 0
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"sedaq: {where}{error.strerror or error}; check the path, the rights and the space on that disk", 2)
    except Exception as error:
        return _failed(error, debug)


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more, as after `| head`; another pipe may break as well."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _failed(error: Exception, debug: bool) -> int:
    if debug:
        raise error
    return _fail(f"sedaq: failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (--debug shows where)", 1)


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as Ctrl-C asks."""


def _terminate(*_: object) -> None:
    raise Terminated


def _fail(message: str, code: int) -> int:
    click.echo(" ".join(message.split()), err=True)
    return code


def run() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())


if __name__ == "__main__":
    run()
