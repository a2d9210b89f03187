"""Changes files at random, so that some of them still nearly make sense."""

import random as randomness

# Numbers at which formats and languages count otherwise.
EDGES = (0, 1, -1, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**80)
TEXTS = (
    "", " ", "\x00", "\x1b[31m", "\u202e", "../../x", "/dev/zero", "a" * 5000, "[link=x]y[/link]",
    "<script>", "{{x}}", "nan", "inf", "-0.0", "1e400", "9" * 5000, "\ud800", "|`$\\", "\r\n\t",
)  # fmt: skip


def changed(random: randomness.Random, content: bytes) -> bytes:
    """Returns bytes after one to four changes: flips, cuts, repeats, moves and insertions."""
    for _ in range(random.randint(1, 4)):
        content = random.choice(_CHANGES)(random, content or b"\x00")
    return content


def _flip(random, content):
    place = random.randrange(len(content))
    return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]


def _number(random, content):
    place = random.randrange(len(content))
    size = random.choice([1, 2, 4, 8])
    value = random.choice(EDGES) % 256**size
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


def _cut(random, content):
    place = random.randrange(len(content))
    return content[:place] + content[place + random.randint(1, 200) :]


def _end(random, content):
    return content[: random.randrange(len(content))]


def _repeat(random, content):
    place = random.randrange(len(content))
    piece = content[place : place + random.randint(1, 50)]
    return content[:place] + piece * random.choice([2, 10, 1000]) + content[place:]


def _insert(random, content):
    place = random.randrange(len(content))
    return content[:place] + random.choice(TEXTS).encode("utf-8", "replace") + content[place:]


_CHANGES = (_flip, _flip, _number, _number, _cut, _end, _repeat, _insert)


def value(random: randomness.Random, depth: int = 0):
    """Returns any value that JSON and TOML can hold."""
    kind = random.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return random.choice(EDGES)
    if kind == 1:
        return random.choice([0.5, -1.5, 1e308, float("inf"), float("nan")])
    if kind in {2, 3}:
        return random.choice(TEXTS).replace("\ud800", "?")
    if kind == 4:
        return random.random() < 0.5
    if kind == 5:
        return {random.choice("abc"): value(random, depth + 1) for _ in range(3)}
    return [
        value(random, depth + 1) for _ in range(random.choice([0, 1, 3, 300]) if not depth else 2)
    ]


def document(random: randomness.Random, content, written) -> bytes:
    """Returns content in the form of `written`, often with other values, or with other bytes."""
    if random.random() < 0.7:
        content = with_other_values(random, content)
    text = written(content).encode("utf-8", "replace")
    return changed(random, text) if random.random() < 0.5 else text


def with_other_values(random: randomness.Random, content):
    """Returns a tree of dicts and lists in which some values are others."""
    if isinstance(content, dict):
        made = {key: with_other_values(random, inner) for key, inner in content.items()}
        if random.random() < 0.05:
            made[random.choice(TEXTS).replace("\ud800", "?")] = value(random)
        return {key: inner for key, inner in made.items() if random.random() > 0.03}
    if isinstance(content, list):
        return [with_other_values(random, inner) for inner in content]
    return value(random) if random.random() < 0.1 else content
