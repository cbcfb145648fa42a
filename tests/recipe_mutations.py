"""Recipes with something wrong or odd in them, each following from its number.

A mutation works on the recipe's nodes (a key misspelt, a list for a mapping, a value that YAML
reads otherwise), on the text of its file (encodings, tabs, quotes, several documents, aliases), on
its `base:`, or on the command line. What a mutation puts into the text as it stands is held by a
mark until the nodes are written out.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from inference.recipe.schema import all_keys

STR, MAP, SEQ = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))


@dataclass
class Case:
    """A recipe and a command line."""

    text: bytes
    overrides: list[str]
    what: list[str] = field(default_factory=list)
    """The mutations, for messages."""
    new_keys: list[str] = field(default_factory=list)
    """Keys that no recipe has, which a mutation put in; something has to be said of them."""


ODD = (
    "yes", "no", "on", "off", "Yes", "NO", "y", "~", "null", "", "true", "True", "TRUE",
    "1e-4", "1E-4", "1.e3", ".5", "5.", "-.5", "+1", "1e400", "-1e400", "1e-400", "0x1F", "0b11",
    "0o17", "012", "0123", "089", "1_000", "1__0", "_1", "12:30", "190:20:30", "-1:30", "1:30.5",
    "2024-01-01", "2024-01-01T00:00:00Z", "2001-12-14 21:59:43.10 -5", ".inf", "-.inf", ".nan",
    ".NaN", "nan", "inf", "-0", "-0.0", "0", "-1", "1", "2", "7", "0.5", "1.0", "3.0", "1e3",
    str(2**31), str(2**32), str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64), str(-(2**63)),
    "9" * 400, "9" * 5000, "1" + "_0" * 3000, "0x" + "f" * 5000, "1:" * 900 + "1",
    "0." + "1" * 5000, "1e" + "9" * 30, "-1e-" + "9" * 30,
    "abc", '"abc"', "'abc'", '"yes"', '"1"', '"1e-4"', '""', "' '", "a b", "'it''s'", '"a\\nb"',
    '"\\0"', '"a\\x00b"', '"\\e[31m"', '"\\ud800"', '"\\U0001F600"', "\u00e9\u4e16\u754c",
    "\U0001f600", "a\u00a0b", "a\u200bb", "a\u2028b", "a\ufeffb", "a\x85b", "a\tb", "a:b", "a: b",
    "a #b", "a# b", "a:", ":a", "- a", "-a", "-", "--", "---", "...", "?", "? a", "|", ">", ">-",
    "|\n  x", "%a", "@a", "`a`", "!", "!a", "!!", "!!str", "!!str 1", "!!str abc", "!!int 3",
    "!!int abc", "!!int ''", "!!float 1", "!!float abc", "!!bool yes", "!!bool 3", "!!null x",
    "!!null ''", "!!binary aGFsbG8=", "!!binary x", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!timestamp 2024-01-01", "!!timestamp x", "!!map {a: 1}", "!!seq [1]",
    "!!map 3", "!!seq {a: 1}", "!!python/object:os.system {}", "!!python/name:os.system",
    "!!python/object/apply:os.system [echo]", "!!python/tuple [1, 2]", "!!merge <<", "!<x> 1",
    "!e!x 1", "<<", "=", "*a", "&a", "&a 1", "&a [*a]", "&a {b: *a}", "[&b 1, *b]", "[]", "{}",
    "[[]]", "[{}]", "{a: 1}", "{a: }", "{a}", "[a]", "[a, 1]", "[1, 2]", "[1, 2, 3]", "[null]",
    "[yes, no]", "[0.9, 0.999]", "[1, a: b]", "[cat:dog:0.5]", "{red|blue}", "{a: 1, a: 2}",
    "{1: 2}", "{null: 1}", "{yes: 1}", "{[a]: 1}", "{{}: 1}", "{? a : 1}", "{'': 1}", "{' ': 1}",
    "{a.b: 1}", "{'a[0]': 1}", "{'a=b': 1}", "{'${name}': 1}", "{<<: {a: 1}}", "{<<: 3}",
    "{<<: [a]}", "{<<: null}", "{a: {a: {a: {a: 1}}}}", "[[[[1]]]]",
    "${name}", "${seed}", "'${name}'", "'${x}'", "'${'", "'${}'", "'${.}'", "'${..}'", "'}'",
    "'${oc.env:HOME}'", "'${oc.env:NO_SUCH_NAME}'", "'${oc.env:NO_SUCH_NAME,1}'",
    "'${oc.decode:\"[1\"}'", "'${oc.create:{a: 1}}'", "'${oc.select:name}'", "'${oc.deprecated:x}'",
    "'${oc.dict.keys:data}'", "'${no.such:1}'", "'${${name}}'", "'${data}'", "'${data.path}'",
    "'${sampling.images}'", "'${base_model.path}'", "'\\${x}'", "'\\\\${name}'", "'$x'", "'$$'",
    "'${x=red}'", "'${sampling.settings.steps}'", "'${settings.steps}'", "'???'", "???", "'\\???'",
    "????", "lora", "picto", "cpu", "bf16", "auto", "disk", "Euler a", "euler", "Karras", "png",
    "../x", "/", "/dev/null", "a/b", ".", "..", ".hidden", "~/x", "C:\\\\x", "'" + "x" * 300 + "'",
    '"' + "y" * 70000 + '"',
)  # fmt: skip
"""What stands where a value belongs."""

WORDS = ("abc", "1", "0.5", "true", "null", "[]", "{}", "lora")


def marked(tree: "Tree", raw: str) -> yaml.ScalarNode:
    """A node in whose place the text stands when the tree is written."""
    tree.raw.append(raw)
    return yaml.ScalarNode(STR, f"Q{len(tree.raw) - 1}Q")


class Tree:
    """A recipe's nodes, to be changed and written out again."""

    def __init__(self, text: str) -> None:
        self.root: Any = yaml.compose(text, yaml.SafeLoader)
        self.raw: list[str] = []

    def text(self) -> str:
        text = yaml.serialize(self.root, Dumper=yaml.SafeDumper, allow_unicode=True, width=10**6)
        for number in reversed(range(len(self.raw))):
            text = text.replace(f"Q{number}Q", self.raw[number])
        return text

    def mappings(self) -> list[yaml.MappingNode]:
        """Those that have entries."""
        return [node for node in _nodes(self.root) if isinstance(node, yaml.MappingNode)]


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _nodes(value)


def pick(tree: Tree, rng: random.Random) -> tuple[list[Any], int]:
    """The entries of a mapping and the place of one of them."""
    entries = rng.choice([node.value for node in tree.mappings() if node.value])
    return entries, rng.randrange(len(entries))


def misspelt(word: str, rng: random.Random) -> str:
    """The word with a slip of the fingers, or in another manner of writing."""
    at = rng.randrange(max(len(word), 1))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz_-. 1")
    return rng.choice(
        [
            lambda: word[:at] + word[at + 1 :],
            lambda: word[:at] + letter + word[at:],
            lambda: word[:at] + letter + word[at + 1 :],
            lambda: word[:at] + word[at : at + 1] * 2 + word[at + 1 :],
            lambda: word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
            word.upper,
            word.title,
            lambda: word.replace("_", "-"),
            lambda: word.replace("_", ""),
            lambda: word.replace("_", " "),
            lambda: f"{word} ",
            lambda: f" {word}",
            lambda: f"{word}s",
            lambda: f"--{word}",
            lambda: f"{word}.{word}",
            lambda: f"{word}\u00a0",
            lambda: word.replace("a", "\u0430").replace("e", "\u0435"),  # Cyrillic
        ]
    )()


NAMED = ("images", "clips", "concepts", "members", "stages", "subsets", "learning_rates")
"""Mappings whose keys are names of the user's choice."""
FREE = (*NAMED, "settings", "prompts", "arguments", "artifacts")


def is_fixed(tree: Tree, entries: list[Any]) -> bool:
    """Whether the keys of a mapping are of a dataclass (Deforum's settings are not)."""
    found = [
        key.value
        for node in tree.mappings()
        for key, value in node.value
        if isinstance(value, yaml.MappingNode) and value.value is entries
    ]
    return not (found and found[0] in FREE)


def misspell_key(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    key, value = entries[at]
    new = misspelt(key.value, rng)
    if is_fixed(tree, entries) and new != key.value and key.value != "base":
        case.new_keys.append(new)
    entries[at] = (yaml.ScalarNode(STR, new), value)


def add_unknown_key(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    new = rng.choice(["foo", "foo.bar", "lr", "batch_size2", "Seed", "x" * 3000, "é", "0", "''"])
    if is_fixed(tree, entries):
        case.new_keys.append(new)
    entries.insert(at, (yaml.ScalarNode(STR, new), marked(tree, rng.choice(WORDS))))


def odd_key(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    keys = (
        "? [a]", "? {a: 1}", "null", "~", "''", "1", "yes", "!!int 1", "*x", "<<", "? |\n  a",
        "- a", "12:30", "'${name}'", '"\\0"', "!!python/name:os.a", "=",
    )  # fmt: skip
    raw = rng.choice(keys)
    entries[at] = (marked(tree, raw), entries[at][1])


def odd_value(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    entries[at] = (entries[at][0], marked(tree, rng.choice(ODD)))


def odd_value_of_a_known_key(kind: type) -> Callable[[Tree, random.Random, Case], None]:
    known = [key.replace("<name>", "a") for key in all_keys(kind)]

    def mutate(tree: Tree, rng: random.Random, case: Case) -> None:
        *above, last = rng.choice(known).split(".")
        node = tree.root
        for name in above:
            inner = {key.value: value for key, value in node.value}.get(name)
            if not isinstance(inner, yaml.MappingNode):
                inner = yaml.MappingNode(MAP, [])
                node.value = [one for one in node.value if one[0].value != name]
                node.value.append((yaml.ScalarNode(STR, name), inner))
            node = inner
        node.value = [one for one in node.value if one[0].value != last]
        node.value.append((yaml.ScalarNode(STR, last), marked(tree, rng.choice(ODD))))

    return mutate


def nest_wrongly(tree: Tree, rng: random.Random, case: Case) -> None:
    """A list for a mapping, one level too many or too few, nothing at all."""
    entries, at = pick(tree, rng)
    key, value = entries[at]
    way = rng.randrange(6)
    if way == 0:
        value = yaml.SequenceNode(SEQ, [value])
    elif way == 1:
        value = yaml.MappingNode(MAP, [(key, value)])
        case.new_keys += [key.value] if is_fixed(tree, entries) and key.value not in FREE else []
    elif way == 2 and isinstance(value, yaml.MappingNode):
        value = yaml.SequenceNode(SEQ, [yaml.MappingNode(MAP, [one]) for one in value.value])
    elif way == 3 and isinstance(value, yaml.MappingNode):
        entries[at : at + 1] = value.value
        case.new_keys[:] = [new for new in case.new_keys if new != key.value]  # maybe undone
        return
    elif way == 4:
        value = marked(tree, "")
    else:
        tree.root.value.append((key, value))
    entries[at] = (key, value)


def drop(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    del entries[at]


def repeat(tree: Tree, rng: random.Random, case: Case) -> None:
    entries, at = pick(tree, rng)
    entries.append((entries[at][0], marked(tree, rng.choice(ODD))))


def odd_base(tree: Tree, rng: random.Random, case: Case) -> None:
    bases = (
        ".", "..", "/", "", "none.yaml", "base", "base/none.yaml", "r.yaml", "./r.yaml",
        "loop1.yaml", "/dev/null", "/dev/zero", "/proc/self/mem", "fifo.yaml", "x" * 300,
        "'a\\0b'", '"a\\0b"', "5", "[r.yaml]", "[]", "[base/sd15.yaml, base/sd15.yaml]",
        "[base/sd15.yaml, base/sdxl.yaml]",
        "{a: b}", "[1]", "[[a]]", "yes", "~", "../configs/base/sd15.yaml", "base/sd21.yaml",
        "'${name}'",
        "doubling0.yaml", "chain0.yaml", "base/sd15", "picture.png", "~/x.yaml", "file:///etc/passwd",
        "base/../base/sd15.yaml", "é.yaml", "http://localhost/x.yaml", "diamond.yaml",
    )  # fmt: skip
    entries = tree.root.value
    entries[:] = [entry for entry in entries if entry[0].value != "base"]
    entries.insert(0, (yaml.ScalarNode(STR, "base"), marked(tree, rng.choice(bases))))


def aliases(tree: Tree, rng: random.Random, case: Case) -> None:
    """An entry becomes an alias, a merge, or one that multiplies."""
    entries, at = pick(tree, rng)
    bomb = "&l0 [x, x, x, x, x, x, x, x, x]"
    for level in range(1, 12):
        bomb = f"&l{level} [{bomb}" + f", *l{level - 1}" * 8 + "]"
    wide = "[" + ", ".join(["&w {a: 1}", *["*w"] * 5000]) + "]"
    merge = "{<<: [" + ", ".join(["&m {a: 1}", *["*m"] * 50]) + "]}"
    raw = rng.choice([bomb, wide, merge, "&a {a: 1, <<: *a}", "&a {<<: [*a, *a]}", "&a [*a, *a]",
                      "*unknown", "{<<: {steps: 3}}", "{<<: {foo: 3}}", "{<<: [{a: 3}, {a: 4}]}",
                      "[" * 5000 + "]" * 5000, "{a: " * 3000 + "1" + "}" * 3000,
                      "[" * 60 + "]" * 60, "[" * 200000])  # fmt: skip
    entries[at] = (entries[at][0], marked(tree, raw))


TREE_MUTATIONS = [
    (misspell_key, 8), (add_unknown_key, 3), (odd_key, 2), (odd_value, 8), (nest_wrongly, 5),
    (drop, 2), (repeat, 1), (odd_base, 2), (aliases, 1),
]  # fmt: skip


STRANGE = (
    "\0", "\x07", "\x1b", "\x7f", "\x85", "\u00a0", "\u2028", "\u200b", "\ufeff", "\ufffe",
    "\t", "\r", '"', "'", "{", "}", "[", "]", ":", "#", "&", "*", "!", "|", "%", "@", "`", ",",
    "\n", "\n---\n", "\n...\n", "- ", "? ", ": ", " #",
)  # fmt: skip


def encode(text: str, rng: random.Random) -> bytes:
    """The text as no recipe should be written, or just about."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    place = rng.randrange(len(text) + 1)

    def spoilt(change: Callable[[str], str]) -> bytes:
        return "\n".join([*lines[:at], change(lines[at]), *lines[at + 1 :]]).encode()

    odd = rng.choice(STRANGE)
    return rng.choice(
        [
            lambda: b"\xef\xbb\xbf" + text.encode(),
            lambda: b"\xef\xbb\xbf" * 2 + text.encode(),
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-le"),
            lambda: b"\xfe\xff" + text.encode("utf-16-be"),
            lambda: text.encode("utf-32"),
            lambda: (text + "\n# caf\u00e9").encode("latin-1", "replace"),
            lambda: text.encode() + b"\xff\xfe\x00",
            lambda: text.replace("\n", "\r\n").encode(),
            lambda: text.replace("\n", "\r").encode(),
            lambda: text.replace("\n", "\n\n\r\n").encode(),
            lambda: text.replace("  ", "\t").encode(),
            lambda: text.replace(": ", ":\t").encode(),
            lambda: text.replace(": ", ":").encode(),
            lambda: text.replace(": ", " : ").encode(),
            lambda: text.replace(": ", ":\u00a0").encode(),
            lambda: text.replace(": ", "= ").encode(),
            lambda: text.replace(" ", "\u00a0").encode(),
            lambda: text.replace('"', "\u201c").encode(),
            lambda: text[:place].encode(),
            lambda: (text + "\n---\n" + text).encode(),
            lambda: ("---\n" + text + "\n...\n").encode(),
            lambda: ("%YAML 1.2\n---\n" + text).encode(),
            lambda: ("%FOO\n---\n" + text).encode(),
            lambda: (text + text).encode(),
            *(lambda no=no: no for no in (b"", b"# nothing\n", b"null", b"- a\n- b\n", b"text")),
            lambda: yaml.dump([yaml.safe_load(text)]).encode(),
            lambda: repr(yaml.safe_load(text)).encode(),
            *[lambda: (text[:place] + odd + text[place:]).encode()] * 3,
            lambda: text.encode()[:place] + rng.randbytes(1) + text.encode()[place + 1 :],
            lambda: text.encode()[:place] + rng.randbytes(5) + text.encode()[place:],
            lambda: spoilt(lambda line: f"{line}\n{line}"),
            lambda: spoilt(lambda line: " " + line),
            lambda: spoilt(lambda line: line.removeprefix(" ")),
            lambda: spoilt(lambda line: ""),
            lambda: spoilt(lambda line: f"{line} # {line}"),
            lambda: spoilt(lambda line: f"#{line}"),
            lambda: spoilt(lambda line: f"{line} {line}"),
            lambda: spoilt(lambda line: f"{line}\\"),
            lambda: spoilt(lambda line: line.replace(":", "")),
            lambda: (text + "\n" + "x" * 300_000 + ": 1\n").encode(),
            lambda: (text + "\nlong: '" + "x" * 3_000_000 + "'\n").encode(),
            lambda: (text + "".join(f"\nk{n}: {n}" for n in range(3000))).encode(),
        ]
    )()


def odd_override(kind: type, rng: random.Random, case: Case) -> str:
    """A `key=value` with something odd about it."""
    known = rng.choice(list(all_keys(kind)))
    key = known.replace("<name>", rng.choice(["a", "cat", "a b", "0"]))
    value = rng.choice(ODD).replace("\n", " ")
    way = rng.randrange(8)
    if way == 0:
        names = key.split(".")
        names[-1] = new = misspelt(names[-1], rng)
        above = names[-2] if len(names) > 1 else ""
        is_new = ".".join([*known.split(".")[:-1], new]) not in all_keys(kind)
        if above not in FREE and is_new and new.strip() and "." not in new:
            case.new_keys.append(new)
        return f"{'.'.join(names)}={rng.choice(WORDS)}"
    if way == 1:
        odd = ("=", "", "=x", "a", "--a=1", "-a", ".a=1", "a.=1", "a..b=1", " name=x", "name =x",
               "name= x", "name==x", "+a=1", "~a", "base=x", "base.x=1", "name:x", "a=b=c", "0=1",
               "[0]=1", "name[0]=1", "a\u00a0=1", "\udc80=1", "name=\udc80", "'name'=x", "é=1",
               ".".join("a" * 5000) + "=1", "x" * 5000 + "=1", "name={" + "[" * 5000)  # fmt: skip
        return rng.choice(odd)
    return f"{key}={value}"


def mutated(number: int, shipped: list[tuple[str, type, list[str]]]) -> tuple[int, Case]:
    """The case of a number: which of the shipped recipes it comes from, and what became of it.

    Args:
        number: which case.
        shipped: text, dataclass and needed overrides of each.
    """
    rng = random.Random(f"recipe {number}")
    place = rng.randrange(len(shipped))
    text, kind, needed = shipped[place]
    case = Case(b"", list(needed))
    tree = Tree(text)
    way = rng.random()
    if way < 0.68:
        for _ in range(rng.choice([1, 1, 1, 2])):
            mutations, weights = zip(
                *TREE_MUTATIONS, (odd_value_of_a_known_key(kind), 8), strict=True
            )
            mutate = rng.choices(mutations, weights)[0]
            case.what.append(mutate.__name__)
            mutate(tree, rng, case)
    if way > 0.84:
        for _ in range(rng.choice([1, 1, 2])):
            case.overrides.append(odd_override(kind, rng, case))
        case.what.append(f"overrides {[one[:80] for one in case.overrides]}")
    case.text = tree.text().encode("utf-8", "surrogatepass")
    if 0.66 < way < 0.84:
        case.what.append("encoding")
        case.text = encode(tree.text(), rng)
    return place, case
