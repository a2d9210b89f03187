"""Weights in several files with an index, as Hugging Face's libraries write them."""

import json
from pathlib import Path
from typing import Any

from robustbench_kd.checkpoints._text import one_line
from robustbench_kd.checkpoints.card import is_file_name
from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.received import read_text
from robustbench_kd.core.text import shortened

INDEX = ".index.json"
_LARGEST_INDEX = 50 * 2**20  # bytes
_MOST_SHARDS = 1000


def is_index(path: Path) -> bool:
    """Returns whether a file is called like an index of shards."""
    return path.name.endswith(INDEX)


def shards(index: Path) -> list[Path]:
    """Returns the files that an index names, all of them beside it.

    Raises `CheckpointError` for what is no index, and for names that lead elsewhere.
    """
    text = read_text(index, "index", CheckpointError, most=_LARGEST_INDEX)
    try:
        names = _names(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{index}' is no index of weights ({one_line(error)}): expected a 'weight_map' of "
            "names of files; download it again"
        ) from error

    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"'{index}' names {len(files)} files, of which '{one_line(missing[0])}' is missing: "
            "download all of them"
        )
    return files


def _names(content: Any) -> list[str]:
    """Returns the names of an index in order; raises `ValueError` for anything else."""
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("there is no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > _MOST_SHARDS:
        raise ValueError(f"it names more than {_MOST_SHARDS} files")
    for name in names:
        if not is_file_name(name) or is_index(Path(name)):
            raise ValueError(f"it names {shortened(name)}, which is no file beside it")
    return names
