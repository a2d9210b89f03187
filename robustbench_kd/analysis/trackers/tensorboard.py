"""TensorBoard: event files under a folder, one per run."""

import io
import time
from pathlib import Path

from robustbench_kd.analysis.trackers._library import library
from robustbench_kd.analysis.tracking import Entry
from robustbench_kd.core.files import write_bytes
from robustbench_kd.core.rundir import run_folder


def log(entry: Entry, place: str) -> str:
    """Writes the event file of a run and returns its path.

    It lies under the folder `place`, `runs` by default, and replaces an earlier one of the run.
    """
    summary = library("tensorboard.compat.proto.summary_pb2")
    event = library("tensorboard.compat.proto.event_pb2")
    records = library("tensorboard.summary.writer.record_writer")
    values = []
    for name, number in entry.metrics.items():
        values.append(summary.Summary.Value(tag=name, simple_value=number))
    values.append(_text("parameters", _table(entry)))
    values.append(_text("findings", entry.findings))

    path = run_folder(Path(place or "runs"), entry.model, entry.run_id) / "events.out.tfevents.rkd"
    file = io.BytesIO()
    writer, now = records.RecordWriter(file), time.time()
    writer.write(event.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    content = summary.Summary(value=values)
    writer.write(event.Event(wall_time=now, step=0, summary=content).SerializeToString())
    write_bytes(path, file.getvalue())
    return str(path)


def _text(name: str, text: str) -> object:
    summary = library("tensorboard.compat.proto.summary_pb2")
    tensor = library("tensorboard.compat.proto.tensor_pb2")
    metadata = summary.SummaryMetadata(
        plugin_data=summary.SummaryMetadata.PluginData(plugin_name="text")
    )
    value = tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    return summary.Summary.Value(tag=name, metadata=metadata, tensor=value)


def _table(entry: Entry) -> str:
    """Returns the parameters as Markdown, indented so that no name in them acts."""
    return "\n".join(f"    {name}: {value}" for name, value in entry.params.items())
