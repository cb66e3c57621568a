"""Files with something wrong in them: what the tests of malformed files draw."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

STRANGE: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "\x00\ud800",
    "name\nwith lines",
    [],
    {},
    [[]],
    [1, 2, 3],
    [None] * 4,
    ["1", "2", "3", "4"],
    -1,
    0,
    1.5,
    -3.25,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    -(2**70),
    10**400,
    {"id": 1},
)
TEXTS = (
    *("", " ", "x", "nan", "inf", "-inf", "-5", "0", "1e999", "1_000", "0x10", "1,5", "½", "٣"),
    *("9" * 400, "9" * 5000, "1e308", "-1e308", "1.7e-320", "--1", "1 2", "None", "\u202e1"),
)


def bytes_variant(rng: random.Random, content: bytes) -> bytes:
    """Cut, repeated, damaged, or in another encoding."""
    start = rng.randrange(len(content))
    end = rng.randrange(start, len(content) + 1)
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    changes: list[Callable[[], bytes]] = [
        lambda: content[:start],
        lambda: content[start:],
        lambda: content[:start] + content[end:],
        lambda: content[:end] + content[start:],
        lambda: content[:start] + noise + content[start:],
        lambda: content[:start] + noise + content[end:],
        lambda: content[:start] + b"\x00" + content[start + 1 :],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: b"\xef\xbb\xbf\xef\xbb\xbf" + content,
        lambda: content.decode().encode("utf-16"),
        lambda: content.decode().encode("utf-32-be"),
        lambda: content.decode().encode("gb18030"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content * rng.randrange(2, 5),
        lambda: noise,
        lambda: b"",
    ]
    return rng.choice(changes)()


def json_variant(rng: random.Random, content: bytes) -> bytes:
    """A value somewhere within is strange, gone, or there twice."""
    tree = json.loads(content)
    for _ in range(rng.randrange(1, 4)):
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            change = rng.randrange(4)
            if change == 0:
                del node[key]
            elif change == 1 and isinstance(node, list):
                node.append(copy.deepcopy(rng.choice(node)))
            else:
                node[key] = copy.deepcopy(rng.choice(STRANGE))
            break
    return json.dumps(tree).encode()


def deep(opening: str, closing: str = "") -> Callable[[random.Random, bytes], bytes]:
    """Nested without end, at some place."""

    def variant(rng: random.Random, content: bytes) -> bytes:
        place, depth = rng.randrange(len(content)), rng.choice([50, 3000, 60_000])
        middle = (opening * depth + closing * depth).encode()
        return content[:place] + middle + content[place:]

    return variant


def token_variant(rng: random.Random, content: bytes) -> bytes:
    """Words between tags, blanks or commas are strange, gone, or exchanged."""
    text = content.decode()
    words: list[str] = []
    word = ""
    for letter in text:
        if letter in " <>\n,:[]{}/":
            words += [word, letter]
            word = ""
        else:
            word += letter
    words.append(word)
    for _ in range(rng.randrange(1, 4)):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        change = rng.randrange(4)
        if change == 0:
            words[i], words[j] = words[j], words[i]
        elif change == 1:
            words[i] = ""
        else:
            numbers = [n for n, w in enumerate(words) if w[:1].isdigit()] or [i]
            words[rng.choice([i, rng.choice(numbers)])] = rng.choice(TEXTS)
    return "".join(words).encode()


def entity_variant(rng: random.Random, content: bytes) -> bytes:
    """Entities and document types, harmless and not."""
    bomb = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(15))
    heads = [
        "<!DOCTYPE annotation>",
        f'<!DOCTYPE annotation [<!ENTITY e0 "x">{bomb}]>',
        '<!DOCTYPE annotation [<!ENTITY e15 SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE annotation SYSTEM "http://localhost:1/x.dtd">',
        '<!DOCTYPE annotation [<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;]>',
        "",
    ]
    place = rng.choice([m for m in range(len(content)) if content[m : m + 1] == b">"]) + 1
    return rng.choice(heads).encode() + content[:place] + b"&e15;" + content[place:]


def alias_variant(rng: random.Random, content: bytes) -> bytes:
    """YAML's own ways to grow and to run code."""
    bomb = "\n".join(f"k{i + 1}: &k{i + 1} [{', '.join([f'*k{i}'] * 9)}]" for i in range(12))
    lines = [
        f"k0: &k0 [x]\n{bomb}\nnames: *k12\n",
        "<<: &a {<<: *a}\n",
        "names: !!python/object/apply:os.getcwd []\n",
        "names: &n [*n]\n",
        "? [a, b]\n: names\n",
        "names: {? {a: b} : c}\n",
        "---\nnames: [a]\n---\nnames: [b]\n",
        "names: !!binary ////\n",
        "names: 2001-99-99\n",
        "names: [0o777777777777777777777777777777, 1:60:60, .inf, .nan]\n",
    ]
    return rng.choice(lines).encode() + (content if rng.random() < 0.5 else b"")
