"""How a worker begins: it watches its parent before it loads anything, which takes seconds.

So this file imports nothing of ours.
"""

import os
import pickle
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection


def begin(task: bytes, sender: Connection) -> None:
    """Loads a pickled task and calls it with the sender; ends at once when the parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pickle.loads(task)(sender)  # noqa: S301  # it comes from the parent


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
