"""Files that grow: a few bytes whose reading takes gigabytes or no end, or fails in odd ways."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import torch
from numpy.lib import format as npy

CARD = {
    "name": "net",
    "classes": 10,
    "image_shape": [1, 8, 8],
    "dataset": "digits",
    "architecture": {"name": "small_cnn"},
    "weights": {"file": "net.safetensors", "sha256": "0" * 64},
}
STORAGE = (  # of one number, under the key 0
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)


def number(value):
    """Pushes a whole number."""
    return b"\x8a\x08" + struct.pack("<q", value)


def call(name, *arguments):
    """Calls a global with arguments that are pushed already."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n(".encode() + b"".join(arguments) + b"tR"


def entry(value, name=b"x"):
    """A dict of one entry."""
    return b"}X" + struct.pack("<I", len(name)) + name + value + b"s"


def expanded(rows):
    """A tensor of one stored number that calls itself a long one."""
    return call(
        "torch._utils._rebuild_tensor_v2",
        STORAGE,
        b"K\x00",
        b"(" + number(rows) + b"t(K\x00t\x89",
        call("collections.OrderedDict"),
    )


def tuples(levels):
    """A tuple of two tuples of two tuples ...: 2 ** levels leaves."""
    return b"K\x01" + b"q\x00h\x00\x86" * levels


RANGE = call("builtins.range", number(10**9))
PICKLES = {
    "list of a range": call("builtins.list", RANGE),
    "set of a range": call("builtins.set", RANGE),
    "tuple of a range": call("builtins.tuple", RANGE),
    "frozenset of a range": call("builtins.frozenset", RANGE),
    "counter of a range": call("collections.Counter", RANGE),
    "size of a range": call("torch.Size", RANGE),
    "text of a range": call("builtins.str", call("builtins.list", RANGE)),
    "bytearray": call("builtins.bytearray", number(2**33)),
    "bytes": call("builtins.bytes", number(2**33)),
    "new bytes": b"cbuiltins\nbytearray\n(" + number(2**33) + b"t\x81",
    "tensor": call("torch.FloatTensor", number(2**31)),
    "storage": call("torch.storage.UntypedStorage", number(2**33)),
    "list of a tensor": call("builtins.list", expanded(10**9)),
    "set of a tensor": call("builtins.set", expanded(10**9)),
    "expanded tensor": expanded(2**40),
    "copies of copies": b"(](" + b"K\x01" * 20_000 + b"eq\x01"
    + call("builtins.list", b"h\x01") * 20_000 + b"t",
    "key of tuples": b"}" + tuples(60) + b"K\x01s",
}  # fmt: skip


def torch_zip(content, *, data=bytes(4), compressed=False):
    """A file of torch.save around a pickle."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/byteorder", b"little")
        made.writestr("archive/data/0", data)
        made.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def weights_pickle(kind):
    """A checkpoint that holds what `PICKLES` calls `kind`."""
    return torch_zip(b"\x80\x02" + entry(PICKLES[kind]) + b".")


def legacy(content):
    """A file of torch.save in its old form, around a pickle."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    return head + b"\x80\x02" + content + b"."


def bomb(path, size=2**32):
    """Writes an archive of a few MB whose one record unpacks to gigabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/version", b"3\n")
        made.writestr("archive/data.pkl", b"\x80\x02}.")
        with made.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(size // 2**20):
                record.write(bytes(2**20))
    return path


def npy_header(text, data=bytes(8), version=(1, 0)):
    """An array with any header."""
    header = text.encode("latin-1") + b"\n"
    length = struct.pack("<H", len(header))
    return npy.MAGIC_PREFIX + bytes(version) + length + header + data


def saved(array):
    """An array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(path, **members):
    """Writes an archive of arrays, each an array or bytes."""
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content if isinstance(content, bytes) else saved(content))
    return path


IMAGES, LABELS = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])


def header(shape, kind="|u1"):
    """The text of an array's header."""
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


ARRAYS = {
    "no tokens": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8"),
    "odd tokens": npy_header("{'descr': '|u1\x00', \x01 'shape': (4L, 8, 8), "),
    "open string": npy_header("{'descr': '''|u1, 'fortran_order': False, 'shape': (4, 8, 8)}"),
    "beyond a long": npy_header(header((2**80, 8, 8))),
    "negative": npy_header(header((-1, 8, 8))),
    "larger than the file": npy_header(header((2**38, 8, 8))),
    "deep": npy_header("(" * 5000),
    "no images": np.zeros((0, 8, 8), np.uint8),
    "empty images": np.zeros((4, 0, 8), np.uint8),
}
NUMBERS = {
    "empty": np.zeros(0, np.int64),
    "empty and unsigned": np.zeros(0, np.uint8),
    "beyond int64": np.array([0, 1, 0, 2**64 - 1], np.uint64),
    "many classes": np.array([0, 1, 0, 2**62]),
    "no tokens": ARRAYS["no tokens"],
    "empty matrix": np.zeros((4, 0), np.int64),
}
TOMLS = {
    "deep list": "x = " + "[" * 20_000 + "]" * 20_000,
    "deep table": "x = " + "{a=" * 5_000 + "1" + "}" * 5_000,
    "long number": "x = " + "9" * 5_000,
    "long hexadecimal": "classes = 0x" + "f" * 5_000,
    "dotted key": ".".join("a" * 60_000) + " = 1",
    "dotted table": "[" + ".".join("a" * 60_000) + "]",
    "quoted dotted key": ".".join(['"a"'] * 60_000) + " = 1",
    "spaced dotted key": " . ".join("a" * 60_000) + " = 1",
    "long text": 'name = "' + "n" * 600_000 + '"\nunknown = 1',
    "long key": "k" * 600_000 + " = 1",
    "many keys": "\n".join(f"k{number} = 1" for number in range(60_000)),
    "large": "# " + "x" * 2**25,
    "infinity": "classes = inf",
    "nothing but zeros": "\x00" * 1000,
}


def special_files(folder):
    """A pipe that nobody writes to, a device without end, and a socket's kin."""
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    return [folder / "pipe", folder / "device"]


def statistics(rows):
    """A state dict whose mean is small and whose deviation is long."""
    return {"mean": torch.tensor([0.5]), "std": torch.ones(1).expand(rows)}


def safetensors(entries, data=b""):
    """A file of safetensors with any header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data
