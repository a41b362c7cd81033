"""What a study is, and how its trials are run: side by side, resumable, and read together at the end.

In a study's folder are then `trials.jsonl`, a line for each finished trial; `NAME.json`, the summary with the machine
and the command; `NAME.md`, the same for people; and `NAME.svg`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from bench.studies import STUDIES
from lapinfer import machine
from lapinfer.errors import CheckpointError, InputError, TrainingError
from lapinfer.outputs import write_whole
from lapinfer.progress import Phase, Progress, silent

TRIALS = Phase("trials", "trials")

Data = TypeVar("Data")
"""What a study reads: data.Texts or data.Images."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command says: files to learn from, seeds of each cell (0: the study's own number), whether a minute
    must do (`quick`), and patterns of the trials that are wanted (none: all)."""

    data: tuple[Path, ...] = ()
    seeds: int = 0
    quick: bool = False
    only: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether the trial of this name is to be run."""
        return not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)


@dataclass(frozen=True, slots=True)
class Trial:
    """One training. name: unique in its study, words divided by slashes. arguments: for `Study.run`, as JSON has them;
    those of what it learns from are names and digests, not paths.

    A finished trial is used again for the same name and arguments alone.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """A finished trial, its result, and the folder that it had."""

    trial: Trial
    result: dict[str, Any]
    folder: Path = Path()


def grouped(finished: Sequence[Done], *keys: str) -> dict[tuple[Any, ...], list[Done]]:
    """Finished trials by these of their arguments, in the order of the trials."""
    groups: dict[tuple[Any, ...], list[Done]] = {}
    for done in finished:
        groups.setdefault(tuple(done.trial.arguments[key] for key in keys), []).append(done)
    return groups


@dataclass(frozen=True, slots=True)
class Study(Generic[Data]):
    """A claim, and how it is looked at.

    read(paths) is what all others are given as `data`; InputError when that will not do. run(arguments, data, folder)
    trains one trial in a process of its own with one thread, and may keep a state in `folder`, from which it goes on;
    read and run are functions of a module, so that a process can be given them. summarise(finished trials, data,
    setting) makes the figures; it runs alone: the place to measure time, and there may be no trials when that is all.
    text and plot show the summary. seeds: of each cell, unless the command says.
    """

    name: str
    read: Callable[[Sequence[Path]], Data]
    trials: Callable[[Data, Setting], Sequence[Trial]]
    run: Callable[[dict[str, Any], Data, Path], dict[str, Any]]
    summarise: Callable[[Sequence[Done], Data, Setting], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Path], None]
    seeds: int = 3


@dataclass(slots=True)
class Log:
    """trials.jsonl: a line per finished trial, appended whole; a line that was cut off is not counted."""

    path: Path
    finished: dict[str, Done] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        complete, cut = lines[:-1], lines[-1]
        for number, line in enumerate(complete, 1):
            try:
                entry = json.loads(line)
                trial = Trial(entry["name"], entry["arguments"])
                done = Done(trial, entry["result"], self.folder(trial))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{self.path}: line {number}: not a finished trial ({error!r})") from error
            self.finished[done.trial.name] = done
        if cut:  # killed while it was written
            write_whole(self.path, b"".join(line + b"\n" for line in complete).decode())

    def folder(self, trial: Trial) -> Path:
        """Where a trial keeps its files."""
        return self.path.parent / "trials" / trial.name.replace("/", "-")

    def get(self, trial: Trial) -> Done | None:
        done = self.finished.get(trial.name)
        return done if done is not None and done.trial == trial else None

    def add(self, done: Done) -> None:
        entry = {"name": done.trial.name, "arguments": done.trial.arguments, "result": done.result}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[done.trial.name] = done


def find_study(name: str) -> Study[Any]:
    """The study of a name; InputError says which there are."""
    if name not in STUDIES:
        raise InputError(f"{name}: no such study; expected {', '.join(STUDIES)}")
    return import_module(f"bench.studies.{name}").STUDY


def run_study(
    study: Study[Any], setting: Setting, out: Path, *, jobs: int = 0, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run what is left of a study's trials, `jobs` at a time (0: one per processor); its summary, which is written."""
    say = progress or silent
    setting = replace(setting, seeds=setting.seeds or study.seeds)
    data = study.read(setting.data)
    trials = [trial for trial in _normal(study.trials(data, setting)) if setting.wants(trial.name)]
    if setting.only and not trials:
        raise InputError(f"--only: none of this study's trials is called {' or '.join(setting.only)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        log = Log(out / "trials.jsonl")
        open(log.path, "a").close()
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror})") from error
    left = [trial for trial in trials if log.get(trial) is None]
    if len(left) < len(trials):
        say(f"{len(trials) - len(left)} of {len(trials)} trials were finished before")
    if left:
        train = partial(_train, study.read, study.run, setting.data)
        _run_trials(train, left, log, jobs, say, len(trials))
    say("reading the results")
    summary = study.summarise([log.finished[trial.name] for trial in trials], data, setting)
    command = " ".join(["python -m bench.studies", *sys.argv[1:]])
    about = {"study": study.name, "command": command, "machine": machine.description(), "quick": setting.quick,
             "seeds": setting.seeds}  # fmt: skip
    summary = about | _rounded(summary)
    write_whole(out / f"{study.name}.json", json.dumps(summary) + "\n")
    write_whole(out / f"{study.name}.md", f"# {STUDIES[study.name][0]}\n\n{study.text(summary).rstrip()}\n")
    study.plot(summary, out / f"{study.name}.svg")
    return summary


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which are more than any of them means."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _normal(trials: Sequence[Trial]) -> list[Trial]:
    """Arguments as they come back from JSON; names must differ."""
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names), "trials of the same name"
    return [Trial(trial.name, json.loads(json.dumps(trial.arguments))) for trial in trials]


def _run_trials(
    train: Callable[[dict[str, Any], Path], dict[str, Any]], left: list[Trial], log: Log, jobs: int, say: Progress,
    total: int,
) -> None:  # fmt: skip
    jobs = min(jobs or os.cpu_count() or 1, len(left))
    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        running: dict[Future[dict[str, Any]], Trial] = {
            pool.submit(train, trial.arguments, log.folder(trial)): trial for trial in left
        }
        say(TRIALS, total - len(left), total)
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    trial = running.pop(future)
                    log.add(Done(trial, json.loads(json.dumps(future.result())), log.folder(trial)))
                    say(TRIALS, total - len(running), total)
        except BrokenProcessPool:
            raise TrainingError(
                "the process of a trial was killed (memory?); what is finished is kept, and --jobs 1 needs less"
            ) from None
        except BaseException:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in workers:  # a trial may take minutes, and is not waited for
                process.terminate()
            raise


def _train(
    read: Callable[[Sequence[Path]], Data], run: Callable[[dict[str, Any], Data, Path], dict[str, Any]],
    paths: Sequence[Path], arguments: dict[str, Any], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """A trial, in a worker."""
    return run(arguments, read(paths), folder)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Of a parent that was killed, the workers would train on, and then wait for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
