"""Indices of shards, and class lists."""

import json

import torch
from mutations import TEXTS, document

from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.datasets._class_names import read_class_names

SHARE = 1


def attempt(random, folder):
    torch.save({"a": torch.ones(1)}, folder / "one.pt")
    torch.save({"b": torch.ones(1)}, folder / "two.pt")
    content = {"metadata": {"size": 3}, "weight_map": {"a": "one.pt", "b": "two.pt"}}
    if random.random() < 0.3:
        content["weight_map"]["c"] = random.choice(TEXTS)
    text = document(random, content, json.dumps)
    if random.random() < 0.05:
        text = b"[" * 100_000
    path = folder / random.choice(["net.pt.index.json", "names.json", "names.txt"])
    path.write_bytes(text)
    if path.stem.startswith("names"):
        read_class_names(path)
    else:
        sha256(path)
        read_weights(path)
