"""Files of `rkd suite`, and recipes."""

import tomli_w
from hostile import TOMLS
from mutations import TEXTS, document

from robustbench_kd.cli._sheet import read_sheet
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import parse_curve
from robustbench_kd.training.recipe import load_recipe

SHARE = 2
_SHEET = {
    "checkpoints": ["net.toml"],
    "datasets": ["digits"],
    "threats": ["linf:0.1,0.2", "l2:0.5"],
    "suites": ["standard"],
    "seeds": [0, 1],
    "options": {"examples": 5, "device": "cpu"},
}
_RECIPE = {"epochs": 3, "lr": 0.1, "batch_size": 8, "milestones": [1, 2]}


def attempt(random, folder):
    (folder / "net.toml").write_text("")
    is_sheet = random.random() < 0.6
    text = document(random, _SHEET if is_sheet else _RECIPE, tomli_w.dumps)
    if random.random() < 0.1:
        text = random.choice(list(TOMLS.values())).encode()
    path = folder / "file.toml"
    path.write_bytes(text)
    odd = random.choice(TEXTS)
    if random.random() < 0.1:
        parse_suite(odd)
    elif random.random() < 0.1:
        parse_curve(f"linf:{odd}/{random.choice(TEXTS)}")
    elif is_sheet:
        read_sheet(path, trust_code=False)
    else:
        load_recipe(str(path))
