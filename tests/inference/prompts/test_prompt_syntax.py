"""A1111's prompt language as text: vectors verified against A1111 1.10.1, and malformed prompts."""

import random
import time

import pytest

from inference.prompts.attention import EMPHASIS_MODES, parse_attention
from inference.prompts.composition import split_composition
from inference.prompts.editing import chosen, timeline
from inference.prompts.network_calls import ExtraNetwork, extract_extra_networks
from inference.prompts.styles import apply_styles, read_styles
from inference.runtime.errors import InputError

# -------------------------------------------------------------------------------------- attention

BREAK = ("BREAK", -1)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [("", 1)]),
        ("a cat, b", [("a cat, b", 1)]),
        ("()", [("", 1)]),
        ("a BREAK b", [("a", 1), BREAK, ("b", 1)]),
        ("a \n BREAK  \tb", [("a", 1), BREAK, ("b", 1)]),
        ("BREAK BREAK a", [("", 1), BREAK, ("", 1), BREAK, ("a", 1)]),
        ("aBREAK BREAKb break", [("aBREAK BREAKb break", 1)]),
        ("(a BREAK b:1.2)", [("a", 1.2), BREAK, ("b", 1.2)]),
        ("[BREAK] (x:-1)", [("", 1 / 1.1), BREAK, ("", 1 / 1.1), (" ", 1), ("x", -1)]),
        ("(a)", [("a", 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("((a))", [("a", 1.21)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:.5)(b:+2.)", [("a", 0.5), ("b", 2)]),
        ("(a :1.3 )", [("a ", 1.3)]),
        ("(a: 1.3)", [("a", 1.3)]),
        ("(a:1.3", [("a:1.3", 1.1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("a:1.2.3)", [("a:1.2.3)", 1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("((a)):1.2", [("a", 1.21), (":1.2", 1)]),
        (r"\(a\)", [("(a)", 1)]),
        (r"\[a\] \\ \x", [("[a] \\ x", 1)]),
        (r"(\(a\):1.5)", [("(a)", 1.5)]),
        ("a (b (c:1.2):1.5)", [("a ", 1), ("b ", 1.5), ("c", 1.8)]),
        ("(a [b)] c", [("a ", 1.1), ("b c", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1),
            ],
        ),
    ],
)  # fmt: skip
def test_attention(text, pieces):
    found = parse_attention(text)
    assert [piece.text for piece in found] == [text for text, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([w for _, w in pieces])
    assert [piece.is_break for piece in found].count(True) == pieces.count(BREAK)


def test_attention_modes():
    text = r"(a:2) BREAK [b] \(c\)"
    assert parse_attention(text, "None") == [(text, 1, False)]
    ignored = parse_attention(text, "Ignore")
    assert [piece.text for piece in ignored] == [p.text for p in parse_attention(text)]
    assert {piece.weight for piece in ignored if not piece.is_break} == {1}
    assert parse_attention(text, "No norm") == parse_attention(text, "Original")
    with pytest.raises(InputError, match="expected Original, No norm, Ignore, None; got 'none'"):
        parse_attention(text, "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat (a:1.2.3)", r"character 10, at “a cat \(a:1.2.3\)”: 1.2.3 is not a number"),
        ("(a:.)", r"character 4, .*: \. is not a number; a weight is written as in \(word:1.3\)"),
        ("((a:99999):99999)", r"character 12, .*a weight of 1e\+10; at most 1e\+09 is possible"),
        ("x" * 50 + "(" * 201, r"character 251, at “…\({21}”: more than 200 brackets are open"),
    ],
)
def test_malformed_attention_says_where(text, message):
    with pytest.raises(InputError, match=message):
        parse_attention(text)


# ---------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("test", [(20, "test")]),
        ("[a:b:0.5]", [(10, "a"), (20, "b")]),
        ("[a:b:1.0]", [(20, "a")]),
        ("[a:b:1]", [(1, "a"), (20, "b")]),
        ("[a:b:0]", [(20, "b")]),
        ("[a:b:-1]", [(20, "b")]),
        ("[a::10]", [(10, "a"), (20, "")]),
        ("[a:10]", [(10, ""), (20, "a")]),
        ("[:a:10]", [(10, ""), (20, "a")]),
        ("[a:b:25]", [(20, "a")]),
        ("[a:b:.26]", [(5, "a"), (20, "b")]),
        ("[a:b:1e1]", [(10, "a"), (20, "b")]),
        ("[a:b:1e999]", [(20, "a")]),
        ("[a:b:-1.e999]", [(20, "b")]),
        ("x [ a : b : 3 ] y", [(3, "x  a  y"), (20, "x  b  y")]),
        ("[a:\n3\t]", [(3, ""), (20, "a")]),
        ("a [[[b]]:2]", [(2, "a "), (20, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (20, "(a:2)")]),
        ("[(a:b):(c):3]", [(3, "(a:b)"), (20, "(c)")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (20, "ade")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (20, "((a][:b:c d")]),
        ("(a [b:c:5]:1.2)", [(5, "(a b:1.2)"), (20, "(a c:1.2)")]),
        (r"\[a:b:3\]", [(20, r"\[a:b:3\]")]),
        (r"[\[a\::b:3]", [(3, r"\[a\:"), (20, "b")]),
        ("[a|b:0.5]", [(20, "[a|b:0.5]")]),
        ("[a:b:c:3]", [(20, "[a:b:c:3]")]),
        ("[(a:b:c):d:3]", [(20, "[(a:b:c):d:3]")]),
        ("[a:b] [c:d:x]", [(20, "[a:b] [c:d:x]")]),
        ("[a:b:3] | c", [(20, "[a:b:3] | c")]),
        ("[a:b:3] (x|y)", [(20, "[a:b:3] (x|y)")]),
        ("[a:b:3]" + "\\", [(20, "[a:b:3]\\")]),
        ("a [unbalanced (", [(20, "a [unbalanced (")]),
        ("[a:b:3]]", [(3, "a]"), (20, "b]")]),
        ("", [(20, "")]),
    ],
)
def test_editing(text, entries):
    assert timeline(text, 20) == entries


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("[a|b|]", ["a", "b", "", "a"]),
        ("[fe|]male", ["female", "male", "female", "male"]),
        ("[a||b]", ["a", "", "b", "a"]),
        ("[|]", ["", "", "", ""]),
        ("[a|(b:1.1)]", ["a", "(b:1.1)"] * 2),
        ("[a|[b:c:2]]", ["a", "b", "a", "c"]),
        ("[[x|y]:b:3] [a]", ["x [a]", "y [a]", "x [a]", "b [a]"]),
    ],
)
def test_alternation(text, texts):
    assert timeline(text, 4) == list(enumerate(texts, 1))


@pytest.mark.parametrize(
    ("text", "settings", "entries"),
    [
        ("a [b:.5] c", {}, [(5, "a  c"), (10, "a b c")]),
        ("a [b:.5] c", {"hires_base_steps": 10}, [(10, "a b c")]),
        ("a [b:1.5] c", {"hires_base_steps": 10}, [(5, "a  c"), (10, "a b c")]),
        ("[a:b:24]", {"hires_base_steps": 20}, [(4, "a"), (10, "b")]),
        ("[a:b:0.3]", {"old_rule": True}, [(3, "a"), (10, "b")]),
        ("[a:b:1.5]", {"old_rule": True}, [(1, "a"), (10, "b")]),
        ("[a:b:1.5]", {}, [(10, "a")]),
        ("[a:b:0.5]", {"old_rule": True, "hires_base_steps": 20}, [(10, "a"), (20, "b")]),
    ],
)
def test_hires_pass_and_old_rule(text, settings, entries):
    assert timeline(text, 10, **settings) == entries


def test_the_first_text_has_one_evaluation_more():
    """20 steps of [a:b:0.5]: a 11 times, b 9 times; [a|b]: a, a, b, a, b, …"""
    ends = [entry.end_at_step for entry in timeline("[a:b:0.5]", 20)]
    assert [chosen(ends, n) for n in range(20)] == [0] * 11 + [1] * 9
    entries = timeline("[a|b]", 20)
    ends = [entry.end_at_step for entry in entries]
    assert "".join(entries[chosen(ends, n)].text for n in range(6)) == "aababa"
    assert chosen([5, 10], 99) == 1


# ------------------------------------------------------------------------------------ composition


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a :1.2 AND b :0.5", [("a", 1.2), (" b", 0.5)]),
        ("a ANDb and c", [("a ANDb and c", 1)]),
        ("a AND b :2 x", [("a", 1), (" b :2 x", 1)]),
        ("a:-.5\nAND\nb: +2.  ", [("a", -0.5), ("\nb", 2)]),
        ("a AND", [("a", 1), ("", 1)]),
        ("(a:1.2) AND b:1:2", [("(a:1.2)", 1), (" b:1", 2)]),
        ("at 10:30", [("at 10", 30)]),
    ],
)
def test_composition(text, parts):
    assert split_composition(text) == parts


# ---------------------------------------------------------------------------------- extra networks


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:a>", ("lora", "a", 1, 1, None)),
        ("<lora:a b.c-d:0.8>", ("lora", "a b.c-d", 0.8, 0.8, None)),
        ("<lora:a:0.5:-1>", ("lora", "a", 0.5, -1, None)),
        ("<lora:a:1:1:8>", ("lora", "a", 1, 1, 8)),
        ("<lora:a:unet=0.3>", ("lora", "a", 1, 0.3, None)),
        ("<lora:a:te=0>", ("lora", "a", 0, 0, None)),
        ("<lora:a:2:te=0.5:unet=0:dyn=4>", ("lora", "a", 0.5, 0, 4)),
        ("<lyco:a:.5>", ("lora", "a", 0.5, 0.5, None)),
        ("<hypernet:a>", ("hypernet", "a", 1, 1, None)),
        ("<hypernet:a:0.6>", ("hypernet", "a", 0.6, 0.6, None)),
    ],
)
def test_extra_networks(tag, expected):
    text, networks = extract_extra_networks(f"x {tag}, y<z>")
    assert text == "x , y<z>"
    assert networks == [ExtraNetwork(*expected, position=2)]


def test_extra_networks_keep_their_order():
    text, networks = extract_extra_networks("<lora:b>a<hypernet:c:2> < lora:d> <lora:b:0.5>")
    assert text == "a < lora:d> "
    assert [(one.name, one.unet, one.position) for one in networks] == [
        ("b", 1, 0), ("c", 2, 9), ("b", 0.5, 34),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (
            "<lroa:a>",
            "character 3, .*<lroa:…> is not a kind.*known: lora, lyco, hypernet; .*mean lora",
        ),
        ("<lora::1>", "character 3, .*names no file; write <lora:name>"),
        ("<lora:te=1>", "character 3, .*names no file"),
        ("<lora:a:x>", "character 11, .*te must be a number such as 0.8, got 'x'"),
        ("<lora:a:1:nan>", "character 13, .*unet must be a number"),
        ("<lora:a:1:1:2.5>", "character 15, .*dyn must be a whole number from 1 on, got '2.5'"),
        ("<lora:a:dyn=0>", "character 15, .*dyn must be a whole number"),
        ("<lora:a:lbw=ALL>", "character 11, .*unknown argument lbw=; .*te=, unet=, dyn="),
        ("<lora:a:1:1:1:1>", "character 17, .*too many arguments; .*most te, unet, dyn"),
        ("<hypernet:a:te=1>", "character 15, .*unknown argument te=; known by name: none"),
    ],
)
def test_malformed_extra_network_says_where(tag, message):
    with pytest.raises(InputError, match=message):
        extract_extra_networks(f"x {tag}")


# ----------------------------------------------------------------------------------------- styles

STYLES = (
    "\ufeffname,prompt,negative_prompt\r\n"
    '# comment,x,y\r\nphoto,"photo of {prompt},\nsharp",blurry\r\n,,\r\nold,oil painting,\r\n'
)


def test_styles(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_bytes(STYLES.encode())
    styles = read_styles(path)
    assert list(styles) == ["photo", "old"]
    assert styles["photo"] == ("photo of {prompt},\nsharp", "blurry")
    drawn = apply_styles("a cat ", "bad", ["photo", "old"], styles)
    assert drawn == ("photo of a cat ,\nsharp, oil painting", "bad, blurry")
    assert apply_styles("", "", ["old"], styles) == ("oil painting", "")
    with pytest.raises(InputError, match="no style 'Photo'; nearest: photo"):
        apply_styles("a", "", ["Photo"], styles)
    path.write_text("name,text\nx,y\n")
    assert read_styles(path) == {"x": ("y", "")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected the columns name,prompt,negative_prompt; got nothing"),
        (b"title,prompt\n", "line 1: .*got title, prompt"),
        (b"name,prompt\na,\xff\n", "byte 14: not UTF-8"),
        (b'name,prompt\na,"b" c\n', "line 2: not CSV"),
    ],
)
def test_malformed_styles(tmp_path, content, message):
    (tmp_path / "styles.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_styles(tmp_path / "styles.csv")
    with pytest.raises(InputError, match=r"none.csv: No such file"):
        read_styles(tmp_path / "none.csv")


# --------------------------------------------------------------------------------------- anything

PIECES = [*"()[]:|\\<>.,ab \n15-", "AND", "BREAK", "<lora:", "0.5]", ":1.2)", "[a:b:", "\\("]


def read_all(text):
    """Whether every part of the language could read a text."""
    results = []
    for read in (
        extract_extra_networks,
        split_composition,
        lambda text: [parse_attention(one.text) for one in timeline(text, 20)],
        lambda text: [parse_attention(text, mode) for mode in EMPHASIS_MODES],
    ):
        try:
            read(text)
            results.append(True)
        except InputError as error:
            results.append(False)
            assert "character " in str(error)
    return results


def test_random_prompts_are_read_or_refused():
    dice = random.Random(0)
    texts = ["".join(dice.choices(PIECES, k=dice.randint(1, 40))) for _ in range(1000)]
    results = [read_all(text) for text in texts]
    for read in zip(*results, strict=True):
        assert sum(read) > 500  # and most of them are read
    assert any(not all(one) for one in results)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "[" * 10_000,
        "(" * 5_000 + ")" * 5_000,
        "[" * 5_000 + "]" * 5_000,
        "[a:" * 3_000 + "b:3]" * 3_000,
        "[a|" * 3_000 + "b]" * 3_000,
        "(a" * 10_000,
        " " * 10_000,
        ": " * 5_000,
        "\\" * 9_999,
        "<lora:" * 3_000,
        "BREAK " * 2_000,
        "a AND " * 2_000,
    ],
    ids=lambda text: text[:8],
)
def test_long_and_deep_prompts_take_no_time(text):
    """Each is read in some 0.1 s; quadratic time would be minutes, recursion an error."""
    start = time.process_time()
    read_all(text)
    assert time.process_time() - start < 5
