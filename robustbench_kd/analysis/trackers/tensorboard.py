"""TensorBoard: event files under a folder, one per run."""

import time
from pathlib import Path

from robustbench_kd.analysis.trackers._library import library
from robustbench_kd.analysis.tracking import Entry
from robustbench_kd.core.rundir import run_folder


def log(entry: Entry, place: str) -> str:
    """Writes a run's event file under the folder `place`, `runs` by default, in place of an earlier one; returns it."""
    summary, event = (
        library(f"tensorboard.compat.proto.{name}_pb2") for name in ("summary", "event")
    )
    records = library("tensorboard.summary.writer.record_writer")
    numbers = [
        summary.Summary.Value(tag=name, simple_value=value) for name, value in entry.metrics.items()
    ]
    texts = [
        _text(name, text)
        for name, text in (("parameters", _table(entry)), ("findings", entry.findings))
    ]
    path = run_folder(Path(place or "runs"), entry.model, entry.run_id) / "events.out.tfevents.rkd"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer, now = records.RecordWriter(file), time.time()
        writer.write(event.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        content = summary.Summary(value=[*numbers, *texts])
        writer.write(event.Event(wall_time=now, step=0, summary=content).SerializeToString())
    return str(path)


def _text(name: str, text: str) -> object:
    summary, tensor = (
        library(f"tensorboard.compat.proto.{name}_pb2") for name in ("summary", "tensor")
    )
    metadata = summary.SummaryMetadata(
        plugin_data=summary.SummaryMetadata.PluginData(plugin_name="text")
    )
    value = tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    return summary.Summary.Value(tag=name, metadata=metadata, tensor=value)


def _table(entry: Entry) -> str:
    """Returns the parameters as Markdown, indented so that no name in them acts."""
    return "\n".join(f"    {name}: {value}" for name, value in entry.params.items())
