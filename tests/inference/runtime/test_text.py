"""Whatever is printed passes one filter: text of others never commands the terminal."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import BarColumn, Progress
from rich.table import Table

from inference.runtime import open_console, output, printable, report

ROOT = Path(__file__).parents[3]
FILES = sorted(path for name in ("train", "inference") for path in ROOT.glob(f"{name}/**/*.py"))
PRINTERS = {
    "inference/runtime/text.py": "the filter",
    "train/shadowing.py": "runs before `inference` is known to be Limner's; escapes by itself",
}
EVIL = "a\x1b]0;owned\x07\x1b[31mred\x9b2J\r\x08\u202egnp\u2066\u2028\ud800z"
SHOWN = r"a\x1b]0;owned\x07\x1b[31mred\x9b2J\r\x08\u202egnp\u2066\u2028\ud800z"


def test_control_characters_are_escaped() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("tab\tand\nline, é, 世, 🙂, e\u0301, a\u200db") == (
        "tab\tand\nline, é, 世, 🙂, e\u0301, a\u200db"
    )
    escaped = {chr(code) for code in range(0x110000) if printable(chr(code)) != chr(code)}
    assert {chr(code) for code in (*range(32), *range(127, 160))} - {"\t", "\n"} <= escaped
    assert len(escaped) == 32 - 2 + 33 + 3 + 5 + 4 + 2 + 0x800


def test_lines_and_tables_are_printed_so(capsys: pytest.CaptureFixture[str]) -> None:
    output(EVIL)
    report("draw", f"{EVIL}\nsecond")
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    open_console(width=400).print(table)
    open_console(width=400).print(EVIL, markup=False)
    captured = capsys.readouterr()
    assert not set(captured.out + captured.err) & {"\x1b", "\x07", "\x9b", "\r", "\u202e"}
    assert captured.err == f"draw: {SHOWN}\ndraw: second\n"
    assert captured.out.count(r"\x1b]0;owned") == 5


def test_bars_keep_their_own_escapes() -> None:
    import io

    stream = io.StringIO()
    console = open_console(file=stream, force_terminal=True, width=80, color_system="standard")
    with Progress("x", BarColumn(), console=console, transient=True) as bar:
        bar.add_task("x", total=2)
        bar.console.print(EVIL, markup=False, highlight=False)
    assert "\x1b[" in stream.getvalue()
    assert r"\x1b[31mred" in stream.getvalue().replace("\n", "")
    assert "\x07" not in stream.getvalue() and "\x1b[31m" not in stream.getvalue()


Finding = tuple[int, str]


def other_ways(source: str) -> Iterator[Finding]:
    """Ways to print besides `output` and `open_console`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id="print" | "pprint"):
                yield node.lineno, node.id
            case ast.Call(func=ast.Name(id="input" | "Console") | ast.Attribute(attr="Console")):
                yield node.lineno, ast.unparse(node.func)
            case ast.Call(func=ast.Name(id="tqdm"), keywords=words):
                titles = [word.value for word in words if word.arg == "desc"]
                if not all(isinstance(title, ast.Constant) for title in titles):
                    yield node.lineno, "tqdm with a title from elsewhere"
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(attr="stdout" | "stderr" | "__stdout__" | "__stderr__"),
                    attr="write" | "writelines",
                )
            ):
                yield node.lineno, "a stream's write"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="os"), attr="write"),
                args=[ast.Constant(value=1 | 2), *_],
            ):
                yield node.lineno, "os.write"
            case ast.keyword(arg="file", value=ast.Attribute(attr="stdout" | "stderr")):
                yield node.value.lineno, "file=sys.stderr"
            case ast.ImportFrom(module="rich", names=names):
                if any(name.name == "print" for name in names):
                    yield node.lineno, "rich's print"


def test_everything_is_printed_by_the_filter() -> None:
    found = [
        f"{name}:{line}: {way}"
        for path in FILES
        if (name := path.relative_to(ROOT).as_posix())
        not in (*PRINTERS, "inference/runtime/console.py")
        for line, way in other_ways(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["print by inference.runtime.output or open_console:", *found])


@pytest.mark.parametrize(
    "source",
    [
        "print(1)", "f(print)", "import sys\nsys.stderr.write('a')", "Console(stderr=True)",
        "rich.console.Console()", "from rich import print as p", "tqdm(x, desc=name)",
        "sys.stdout.writelines([])", "input('?')", "f('x', file=sys.stderr)", "os.write(2, b'')",
    ],
)  # fmt: skip
def test_another_way_is_found(source: str) -> None:
    assert list(other_ways(source))


def test_the_one_that_prints_by_itself_escapes_too() -> None:
    from train.shadowing import shown

    for character in map(chr, range(sys.maxunicode + 1)):
        if printable(character) != character:
            assert printable(shown(character)) == shown(character)


def test_passwords_in_addresses_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        "https://me:secret@host/a.tar": "https://host/a.tar",
        "'s3://key:secret@bucket/x' and hf://owner/name": "'s3://bucket/x' and hf://owner/name",
        "https://:token@host": "https://host",
        "ssh://git@host/x": "ssh://git@host/x",
        "C:\\a, b@c, a cat: me@home://x": "C:\\a, b@c, a cat: me@home://x",
    }
    for text, shown in texts.items():
        assert printable(text) == shown
    report("train", next(iter(texts)))
    assert "secret" not in capsys.readouterr().err
    assert printable("://a:" * 300_000) == "://a:" * 300_000


def test_passwords_are_not_written_into_runs() -> None:
    from inference.config import ImagesRecipe
    from inference.recipe import dump_recipe, load_mapping

    mapping = {"images": {"a": {"prompt": "x"}}, "artifact_dirs": ["https://me:secret@host/x"]}
    recipe = load_mapping(mapping, "test", lambda _: ImagesRecipe)
    assert recipe.artifact_dirs == mapping["artifact_dirs"]
    assert "secret" not in dump_recipe(recipe)
    assert "https://host/x" in dump_recipe(recipe)
