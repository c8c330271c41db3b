"""The samples of a teacher so far.

One line each in `OUT.samples/journal.jsonl`, under one fingerprint. Survives a kill at any byte.

Like an evaluation's journal, but made for millions of long samples: only what decides (problem,
sample, correct) stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megaladder.errors import DataError
from megaladder.evaluation.store import SampleJournal
from megaladder.files.shapes import expected
from megaladder.process.faults import fault_point
from megaladder.run_dir import read_jsonl
from megaladder.types import Completion, Graded


class Verdict(NamedTuple):
    """What is remembered of a sample. `line` is its 0-based line in the journal."""

    correct: bool | None  # None: undecided, in no training row
    truncated: bool
    num_tokens: int
    line: int


@dataclass(frozen=True, slots=True)
class TeacherSample:
    """One graded answer, as it is appended."""

    id: str
    sample: int
    completion: Completion
    graded: Graded

    def row(self) -> dict[str, Any]:
        """The journal's line.

        Log-probs and ids are aligned; ids hold the end-of-sequence token when it was sampled."""
        completion, graded = self.completion, self.graded
        return {
            "id": self.id,
            "sample": self.sample,
            "response": completion.text,
            "response_ids": list(completion.token_ids),
            "logprobs": list(completion.logprobs),
            "finish_reason": completion.finish_reason.value,
            "correct": graded.correct,
            "answer": graded.answer,
            "reason": graded.reason.value,
        }


class TeacherJournal(SampleJournal[TeacherSample, Verdict]):
    """Opened for appending; `records` maps (problem id, sample) to a `Verdict`."""

    def append(self, record: TeacherSample) -> None:
        """One finished sample; in the file when this returns."""
        row = record.row()
        key = (record.id, record.sample)
        assert key not in self.records, f"sample {key} is there already"
        fault_point("before_append")
        self._file.append({**row, "fingerprint": self.fingerprint})
        self.records[key] = _verdict(row, len(self.records))
        fault_point("after_append")

    def _read(self) -> dict[tuple[str, int], Verdict]:
        records: dict[tuple[str, int], Verdict] = {}
        for line, row in enumerate(read_jsonl(self.path, sealed=True)):
            if row.get("fingerprint") != self.fingerprint:
                raise DataError(
                    f"{self.path}:{line + 1}: was made with other settings than its folder says;"
                    " fix: use another --out"
                )
            where = f"{self.path}:{line + 1}"
            with expected(where, "a sample of `data sample`", "delete that line, it is made again"):
                key, verdict = (str(row["id"]), int(row["sample"])), _verdict(row, line)
            if key in records:
                raise DataError(
                    f"{where}: sample {key[1]} of problem {key[0]!r} again; fix: delete the line"
                )
            records[key] = verdict
        return records


def _verdict(row: Mapping[str, Any], line: int) -> Verdict:
    return Verdict(row["correct"], row["finish_reason"] == "length", len(row["response_ids"]), line)
