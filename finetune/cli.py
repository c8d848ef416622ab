"""`finetune <command> [key=value ...]`: the only place that prints results and sets exit codes."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from finetune.ending import leave_threads_behind
from finetune.errors import FinetuneError, Interrupted, SweepError, nearest
from finetune.manual import COMMANDS, conf_dir, explain, help_of, is_missing, overview
from finetune.schema import Typed, parse, path_keys
from finetune.serving import logs
from finetune.sweeps.command_line import flags_first, is_sweep, require_one_run
from finetune.sweeps.jobs import Sweep, begin_job, end_job

DONE, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 128 + signal.SIGTERM
# What the system says of a disk or a folder; any other OSError is our fault and keeps its traceback.
OUTSIDE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
# A configuration of another name, such as the config.yaml of a run, does not begin with hydra_defaults.yaml.
OTHER_NAMES = {"--config-name", "-cn"}
NOTHING_ELSE = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.run.dir=."]


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 wrong input, 1 our fault, 130 interrupted, 143 a server by SIGTERM."""
    words = sys.argv[1:] if argv is None else argv
    code = run(words)
    command = COMMANDS.get("".join(words[:1]))
    if command and command.last_work_s:
        leave_threads_behind(command.last_work_s, code)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return DONE
    name, *arguments = argv
    say = _say_as_asked(argv)
    try:
        if name not in COMMANDS:
            raise FinetuneError(f"unknown command '{name}'{nearest(name, COMMANDS)}\n\n{overview()}")
        if "-h" in arguments or "--help" in arguments:
            print(help_of(name))
            return DONE
        # SIGTERM ends a command as Ctrl-C does: what is half written is cleaned up
        signal.signal(signal.SIGTERM, _terminate if name == "serve" else _interrupt)
        _through_hydra(name, flags_first(arguments))
    except FinetuneError as error:
        say(f"finetune {name}: {error}" if name in COMMANDS else f"finetune: {error}")
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output (`| head`) has gone; Python would complain once more when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        # numpy reports a write that was cut short without a number
        if error.errno is not None and error.errno not in OUTSIDE:
            raise
        place = f": {error.filename}" if error.filename else ""
        reason = error.strerror or f"writing failed, is the disk full? ({error})"
        say(f"finetune {name}: {reason}{place}")
        return WRONG_INPUT
    except (KeyboardInterrupt, Interrupted) as stop:
        say(f"finetune {name}: interrupted{'; ' if stop.args else ''}{stop}")
        if name == "train":
            say(f"the same command goes on from there:\n  finetune {shlex.join(argv)}")
        return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
    return DONE


def _say_as_asked(argv: list[str]) -> Callable[[str], None]:
    """Return what says on stderr how a command ended: of a server in the form of its log, though it may never begin."""
    asked = ["auto", *(word.partition("=")[2] for word in argv if word.lstrip("+").startswith("logs="))]
    if argv[0] == "serve" and logs.form_of(asked[-1]) == "json":
        logs.set_up("json")
        return _say_in_json
    return lambda words: print(words, file=sys.stderr)


def _say_in_json(words: str) -> None:
    logging.getLogger(__name__).error(words)
    logs.flush()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Terminated(KeyboardInterrupt):
    """SIGTERM to a server; what starts and stops servers tells it from Ctrl-C by the exit code."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _through_hydra(name: str, arguments: list[str]) -> None:
    """Let Hydra read its own flags and compose the configuration, then run the command, once a job."""
    import hydra
    from omegaconf import OmegaConf

    failures: list[Exception] = []
    sweep = Sweep.of(arguments) if name == "train" else None

    def job(composed: Any) -> float | None:
        values = _without_missing(OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
        number = begin_job(sweep)
        failure = None
        try:
            _execute(name, _in_its_folder(values, number), _typed(shlex.join(["finetune", name, *arguments])))
        except Exception as error:
            # kept from Hydra, which would print it in its own way; the other jobs of a --multirun still run
            failure = error
            failures.append(failure)
        # what a sweeper searches by; this may be another machine than the one that started the sweep
        return None if sweep is None or number is None else end_job(sweep, number, failure)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own exceptions too, and exit with 1
    if "hydra/sweeper=optuna" in arguments:
        importlib.import_module("finetune.sweeps.optuna_sweeper").register()
    quoted = _quoted(name, arguments)
    if not OTHER_NAMES.isdisjoint(arguments):
        quoted += NOTHING_ELSE
    if not is_sweep(arguments):
        require_one_run(quoted, shlex.join(["finetune", name, "--multirun", *arguments]))
    program, sys.argv = sys.argv, [f"finetune {name}", *quoted]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name=name)(job)()
    except FinetuneError:
        raise
    except Exception as error:
        raise FinetuneError(explain(name, arguments, error)) from None
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise FinetuneError(f"wrong arguments: {' '.join(arguments)}") from None
    finally:
        sys.argv = program
    if sweep is not None:
        print(sweep.describe(), flush=True)
        sweep.require_done()
    elif failures:
        if len(failures) == 1 or not all(isinstance(failure, FinetuneError) for failure in failures):
            raise failures[0]
        raise SweepError("\n".join(map(str, failures)), WRONG_INPUT)


def _quoted(name: str, arguments: list[str]) -> list[str]:
    """Quote paths for Hydra's grammar, to which blanks, commas, brackets, = and ~ in them would mean something."""
    if is_sweep(arguments):
        return arguments  # there a comma separates values
    paths = path_keys(COMMANDS[name].schema) | {"model.weights"}
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        as_is = not value or value == "null" or value[0] in "'\"" or "${" in value
        if key in paths and equals and not as_is:
            argument = f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'"
        quoted.append(argument)
    return quoted


def _execute(name: str, values: dict[str, Any], typed: Typed) -> None:
    command = COMMANDS[name]
    parsed = parse(command.schema, values, typed)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("finetune").setLevel(logging.INFO)
    # a process that trains beside another one has nothing to say
    if said := importlib.import_module(command.module).main(parsed):
        print(said, flush=True)


def _typed(line: str) -> Typed:
    """Return what stands on the command line, the keys that a sweep has set for this job among it."""
    from hydra.core.hydra_config import HydraConfig

    keys = (override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task)
    return Typed(tuple(dict.fromkeys(keys)), line)


def _in_its_folder(values: dict[str, Any], number: int | None) -> dict[str, Any]:
    """Give each job of a --multirun its own numbered output folder."""
    if number is not None and values.get("output"):
        values["output"] = str(Path(values["output"]) / str(number))
    return values


def _without_missing(values: Any) -> Any:
    """Drop keys that are still `???`, so that the schema reports them with their meaning."""
    if isinstance(values, dict):
        return {key: _without_missing(value) for key, value in values.items() if not is_missing(value)}
    return values
