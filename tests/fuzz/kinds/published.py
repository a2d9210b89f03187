"""Files of RobustBench's model_info."""

import json

from mutations import document

from robustbench_kd.analysis.published import read_published

SHARE = 2
_ENTRY = {
    "dataset": "cifar10",
    "eps": "8/255",
    "clean_acc": "91.23",
    "autoattack_acc": "56.1",
    "external": 55.0,
    "unreliable": False,
    "name": "A paper",
    "venue": "ICLR 2024",
    "link": "https://example.org",
    "architecture": "WideResNet-28-10",
    "model_name": "Other2024",
    "threat_model": "Linf",
}


def attempt(random, folder):
    text = document(random, [_ENTRY] * random.choice([1, 3]), json.dumps)
    if random.random() < 0.05:
        text = random.choice([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000])
    (folder / "Linf").mkdir()
    (folder / "Linf" / "net.json").write_bytes(text)
    read_published(folder)
