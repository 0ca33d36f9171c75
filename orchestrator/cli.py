"""Define the command-line program `chip-ablate`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from chip_core.utils.exit import exit_before_native_cleanup
from orchestrator import __version__
from orchestrator.commands.cache import cache
from orchestrator.commands.cluster import attach, cluster
from orchestrator.commands.data import data
from orchestrator.commands.evaluate import evaluate
from orchestrator.commands.gallery import gallery
from orchestrator.commands.judge_humans import judge_humans
from orchestrator.commands.mlflow import sync, ui
from orchestrator.commands.new import new, schema
from orchestrator.commands.pairs import pairs
from orchestrator.commands.plugin import plugin
from orchestrator.commands.represent import represent
from orchestrator.commands.score import score
from orchestrator.commands.studies import plan, report, run, status
from orchestrator.commands.trials import diff, export, rm, show

PROGRAM = "chip-ablate"
#: Errors of paths and permissions, for which a traceback is of no use.
_PATH_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.EISDIR,
}  # fmt: skip
#: Range of COLUMNS that is respected; with fewer columns, output is unreadable.
_MIN_COLUMNS, _MAX_COLUMNS = 20, 10_000


def program() -> NoReturn:
    """Run the program as a process whose exit code is `main`'s, whatever libraries do at exit."""
    code = 1  # of an unexpected error

    exit_before_native_cleanup(lambda: code)
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program. A user error prints one line and gives exit code 2."""
    from chip_core.utils.errors import StorageError, UserError

    _unset_invalid_terminal_size()
    joined_arguments = _join_seeds(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = cli.main(
            args=joined_arguments,
            prog_name=PROGRAM,
            standalone_mode=False,
            obj=tuple(joined_arguments),
        )
    except (UserError, StorageError) as error:
        _print_error(str(error))
        code = 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        prefix = (
            f"{error.ctx.command_path}: "
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        _print_error(f"{prefix}{error.format_message()}")
        code = 2
    except (KeyboardInterrupt, click.Abort):
        _print_error("stopped")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        from chip_core.utils.files import is_disk_full

        if is_disk_full(error):
            problem = "the disk is full: free some space"
        elif error.filename is not None and error.errno in _PATH_ERRNOS:
            problem = f"cannot be used ({error.strerror}): fix it"
        else:
            raise
        prefix = f"{error.filename}: " if error.filename else ""
        _print_error(f"{prefix}{problem} and run the same command again")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _unset_invalid_terminal_size() -> None:
    """Unset an unusable size of the terminal, such as COLUMNS=0."""
    for name, minimum in (("COLUMNS", _MIN_COLUMNS), ("LINES", 1)):
        size = os.environ.get(name, "")
        is_usable = size.isascii() and size.isdigit() and minimum <= int(size[:9]) <= _MAX_COLUMNS
        if size and not is_usable:
            del os.environ[name]


def _print_error(text: str) -> None:
    from chip_core.utils.errors import to_printable

    for line in text.splitlines():
        click.echo(f"{PROGRAM}: {to_printable(line)}", err=True)


def _join_seeds(arguments: list[str]) -> list[str]:
    """Join `--seeds 0 1 2` to one value, since an option of click has a fixed number of them."""
    joined: list[str] = []
    index = 0
    while index < len(arguments):
        joined.append(arguments[index])
        index += 1
        if joined[-1] == "--seeds":
            seeds = []
            while index < len(arguments) and arguments[index].isdigit():
                seeds.append(arguments[index])
                index += 1
            if seeds:
                joined.append(",".join(seeds))
    return joined


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"Example: {PROGRAM} run encoder",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Ablation studies for CHiP: which part of the recipe does the work?

    A STUDY is a YAML file, or the name of a study that is shipped or was run.
    """
    from chip_core.utils.errors import reset_warnings

    reset_warnings()


_COMMANDS = (
    new, plan, run, status, report, show, diff, rm, evaluate, score, pairs, data, gallery,
    plugin, export, represent, judge_humans, cache, schema, sync, ui, cluster, attach,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)
