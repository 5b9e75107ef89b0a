"""Answers that were given, so that none is asked twice: in memory, or in a folder, where they are as soon as they are given.

    answers.jsonl          one line an answer, as they finish; in the order of the questions once the run is over
    earlier_answers.jsonl  those of settings and questions that the last run did not ask for; a further run may
    run.json               what decides an answer besides question and setting, and how long settings took

A line that a killed process has left half written is dropped. A folder whose answers came about otherwise is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.growing import replace_text, whole_lines
from eft_engine.evaluation.results import Timing
from eft_engine.evaluation.settings import Setting
from eft_engine.outputs import RequestOutput

ANSWERS, EARLIER, RUN, LOCK = "answers.jsonl", "earlier_answers.jsonl", "run.json", ".lock"
FORMAT = 1


@functools.cache  # made when it is needed: `eft --help` is quick
def _outputs() -> TypeAdapter[RequestOutput]:
    return TypeAdapter(RequestOutput)


@dataclass(frozen=True)
class Recorded:
    """An answer, its marks, and what these were given by (None: the scorers failed)."""

    output: RequestOutput
    marks: Mapping[str, bool]
    scored_by: str | None


class AnswerLog:
    """Answers by setting and question (`Setting.key`, `questions.keys_of`), in memory; those of `open_log` stay."""

    folder: Path | None = None

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Recorded] = {}
        self._timings: dict[str, Timing] = {}

    def __len__(self) -> int:
        return len(self._records)

    def get(self, setting: Setting, question: str) -> Recorded | None:
        """What was answered, if it was."""
        return self._records.get((setting.key(), question))

    def add(self, setting: Setting, question: str, recorded: Recorded, told: Mapping[str, Any]) -> None:
        """Keep an answer. `told`: what people read of it."""
        self._records[setting.key(), question] = recorded
        self._write(_line(setting.key(), question, recorded, told))

    def timing(self, setting: Setting) -> Timing:
        """How long its answers took, as far as that was measured."""
        return self._timings.get(setting.key(), Timing())

    def add_timing(self, setting: Setting, timing: Timing) -> None:
        """Keep how long answers took."""
        self._timings[setting.key()] = self.timing(setting) + timing

    def _write(self, line: str) -> None:
        """Nowhere."""

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderLog(AnswerLog):
    """A log in a folder."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, fresh: bool = False) -> None:
        """See `open_log`."""
        super().__init__()
        self.folder: Path = folder
        self._facts = json.loads(json.dumps(facts))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InvalidOptionError(
                f"another evaluation writes into {folder}; wait for it, or name another folder", option="report"
            ) from None
        except OSError as error:
            raise InvalidOptionError(f"cannot write the report to {folder}: {error}", option="report") from None
        try:
            if fresh:
                self._discard()
            self._read()
            self._save_run()
            self._file = (folder / ANSWERS).open("ab")
        except OSError as error:
            self._lock.release()
            raise InvalidOptionError(f"cannot write the report to {folder}: {error}", option="report") from None
        except BaseException:
            self._lock.release()
            raise

    def add_timing(self, setting: Setting, timing: Timing) -> None:
        """Keep how long answers took."""
        super().add_timing(setting, timing)
        self._save_run()

    def put_in_order(self, lines: Iterable[tuple[Setting, str, Mapping[str, Any]]]) -> None:
        """Write the answers of a run anew, in this order (setting, question, what people read); others go to `EARLIER`."""
        rest = dict(self._records)
        ordered = []
        for setting, question, told in lines:
            recorded = rest.pop((setting.key(), question), None)
            if recorded is not None:
                ordered.append(_line(setting.key(), question, recorded, told))
        others = [
            _line(setting, question, own, {"answer": own.output.text}) for (setting, question), own in rest.items()
        ]
        self._file.close()
        earlier = self.folder / EARLIER
        if others:
            replace_text(earlier, "".join(others))
        replace_text(self.folder / ANSWERS, "".join(ordered))
        if not others:
            earlier.unlink(missing_ok=True)
        self._file = (self.folder / ANSWERS).open("ab")

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        self._lock.release()

    def _write(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "surrogatepass"))
        self._file.flush()

    def _discard(self) -> None:
        for name in (ANSWERS, EARLIER, RUN):
            (self.folder / name).unlink(missing_ok=True)

    def _read(self) -> None:
        answers, run = self.folder / ANSWERS, self.folder / RUN
        if not run.exists():
            if answers.exists() and answers.stat().st_size:
                raise InvalidOptionError(
                    f"{answers} is there, and no {RUN} that says how its answers came about; --fresh discards them, or name "
                    "another folder",
                    option="report",
                    value=str(self.folder),
                )
            return
        try:
            known = json.loads(run.read_text(encoding="utf-8"))
            facts, timings = known["facts"], {key: Timing(**own) for key, own in known["timings"].items()}
            if known["format"] != FORMAT:
                raise ValueError(f"format {known['format']}, not {FORMAT}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidOptionError(
                f"{run} cannot be read ({error}); --fresh discards the answers beside it, or name another folder",
                option="report",
            ) from None
        if differences := _differences(facts, self._facts):
            raise InvalidOptionError(
                f"{self.folder} holds answers that came about otherwise, so they cannot be gone on with:\n  "
                + "\n  ".join(differences)
                + "\nask as before, discard them with --fresh, or name another folder",
                option="report",
                value=str(self.folder),
            )
        self._timings = timings
        for path in (self.folder / EARLIER, answers):
            self._read_answers(path)

    def _read_answers(self, path: Path) -> None:
        """Take up what is there; a torn last line is cut off the file."""
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                known = json.loads(line.decode("utf-8", "surrogatepass"))
                kept = known["kept"]
                output = _outputs().validate_python(kept["output"])
                record = Recorded(output, kept["marks"], kept["scored_by"])
                self._records[kept["setting"], kept["question"]] = record
            except (ValueError, LookupError, TypeError, ValidationError) as error:
                raise InvalidOptionError(
                    f"{path}, line {number} is no answer of an evaluation ({error}); remove the line, or discard all with --fresh",
                    option="report",
                ) from None

    def _save_run(self) -> None:
        timings = {key: dataclasses.asdict(own) for key, own in self._timings.items()}
        run = {"format": FORMAT, "facts": self._facts, "timings": timings}
        replace_text(self.folder / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def open_log(folder: Path, facts: Mapping[str, Any], *, fresh: bool = False) -> FolderLog:
    """A log in a folder, which is made when it is missing, with the answers that are there.

    Args:
        folder: where.
        facts: all that decides an answer besides question and setting, by name (`identity.facts_of`).
        fresh: discard what is there.

    Raises:
        InvalidOptionError: the folder cannot be written, another process writes into it, or its answers came about otherwise.
    """
    return FolderLog(folder, facts, fresh=fresh)


def _line(setting: str, question: str, recorded: Recorded, told: Mapping[str, Any]) -> str:
    kept = {
        "setting": setting,
        "question": question,
        "marks": dict(recorded.marks),
        "scored_by": recorded.scored_by,
        "output": _outputs().dump_python(recorded.output, mode="json"),
    }
    return json.dumps({**told, "kept": kept}, ensure_ascii=False) + "\n"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    def told(facts: Mapping[str, Any], name: str) -> str:
        return json.dumps(facts[name], ensure_ascii=False) if name in facts else "not there"

    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [f"{name}: {told(before, name)} then, {told(now, name)} now" for name in names]
