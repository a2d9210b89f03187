"""The run directory `results/<model>/<run id>/`: every file is written whole or not at all."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from robustbench_kd.core.errors import IncompleteError, RecordError
from robustbench_kd.core.examples import to_text
from robustbench_kd.core.files import read_bytes, write_text
from robustbench_kd.core.records import Finding, RunRecord
from robustbench_kd.core.rows import AttackRow, DrawRow, ExampleRow, attack_rows

RECORD, EXAMPLES, DRAWS, ATTACKS, FINDINGS, LEDGER, ADVERSARIAL, JOB = (
    "run.json",
    "examples.csv",
    "draws.csv",
    "attacks.csv",
    "findings.json",
    "ledger.jsonl",
    "adversarial.safetensors",
    "job.json",
)


def run_folder(results: Path, model: str, run_id: str) -> Path:
    """Returns where a run lives.

    The model's name is reduced to characters that any file system takes.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
    return results / slug[:100] / run_id


def to_csv(rows: Sequence[BaseModel], schema: type[BaseModel]) -> str:
    """Returns rows as CSV with the schema's fields as header.

    None becomes an empty cell, floats keep every digit.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(schema.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return buffer.getvalue()


def write_record(
    folder: Path, record: RunRecord, examples: list[ExampleRow], draws: Sequence[DrawRow] = ()
) -> None:
    """Writes all files of a complete run, `run.json` last: it vouches for the others."""
    write_text(folder / EXAMPLES, to_text(examples))
    if draws:
        write_text(folder / DRAWS, to_csv(draws, DrawRow))
    write_text(folder / ATTACKS, to_csv(attack_rows(record), AttackRow))
    write_text(
        folder / FINDINGS,
        TypeAdapter(list[Finding]).dump_json(record.findings, indent=2).decode() + "\n",
    )
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")


def write_interrupted(folder: Path, record: RunRecord) -> None:
    """Writes what is known of an unfinished run.

    Its ledger stays, for the same command to resume.
    """
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")


def read_record(path: Path) -> RunRecord:
    """Reads a `run.json` as it is: what it says may follow from nothing.

    Raises `RecordError` that names the file and the first thing wrong with it.
    """
    try:
        return RunRecord.model_validate_json(read_bytes(path))
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecordError(
            f"'{path}' is not a run record: {where}: {first['msg']}; delete it and run again"
        ) from error


def read_finished(folder: Path) -> RunRecord:
    """Reads the record of a run like `read_record`.

    Raises `IncompleteError` where the run is unfinished.
    """
    record = read_record(folder / RECORD)
    if record.status != "complete":
        raise IncompleteError(
            f"'{folder}' is unfinished: run the same 'rkd eval' again to resume it"
        )
    return record
