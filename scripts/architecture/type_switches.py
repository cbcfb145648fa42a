"""Find the places that ask for the type of a model, in place of asking the model's family.

    python -m scripts.architecture.type_switches [--at REV]

Counted are lines of `train/` and `inference/`, outside the folders and files of the families
(`inference/models/<family>/`, `train/families/<family>`), that

1. ask for the class of a model: `isinstance`, `issubclass`, `type(x) is` and class patterns of
   `DiffusionModel`, `ModelFamily`, `FamilyTraining`, the classes derived from them, and the
   tree's own classes that those derive from;
2. read an `is_…` or `has_…` that one of these classes defines, or any name of that form that
   speaks of a family: `is_video`, `is_sdxl`, `has_two_text_encoders`, `is_video_model(…)`;
3. compare a prediction type: `==`, `!=`, `in`, `not in` or `match` of `prediction_type`, or of
   anything with `"epsilon"` or `"v_prediction"`;
4. compare a family's name, or a part that only some families have, with a text:
   `denoiser_name == "unet"`, `family.key == "sd2"`, `"text_encoder_2" in parts`.

A line counts once. Comparisons with None do not count: they ask whether an option is set.
Classes of artifacts, objectives and recipes are not models; registries by name ask nothing.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator

from scripts.architecture.tree import PACKAGES, Finding, Tree, read_tree, top_folder

ROOTS = frozenset({"DiffusionModel", "ModelFamily", "FamilyTraining"})

WORDS = (
    "video", "sdxl", "sd1", "sd2", "sd3", "xl", "flux", "wan", "cogvideox", "stable_diffusion",
    "image_to_video", "inpainting", "two_text_encoders", "velocity",
)  # fmt: skip
ASKS_FAMILY = re.compile(rf"_?(is|has|for)_(\w+_)?({'|'.join(WORDS)})(_\w+)?")

PREDICTIONS = ("epsilon", "v_prediction")
PARTS = ("text_encoder_2", "tokenizer_2")
FAMILY_NAMES = re.compile(r"denoiser_name|family(_name)?(\.(name|key))?")

NOT_OF_MODELS = {("stills.py", "is_video"): "animation_mode of a Deforum settings file"}
"""(file, name) that reads like a question about a model and is none -> what it asks."""


def type_switches(tree: Tree) -> Iterator[Finding]:
    """Yield each line that asks for the type of a model, by the rule above."""
    classes = model_classes(tree)
    names = questions(tree, classes)
    for path, parsed in tree.parsed.items():
        if top_folder(path) not in PACKAGES or is_of_family(path):
            continue
        found: dict[int, str] = {}
        for node in ast.walk(parsed):
            asked = asks(node, classes, names)
            line = getattr(node, "lineno", 0)
            if asked and (path.rpartition("/")[2], asked) not in NOT_OF_MODELS:
                found.setdefault(line, asked)
        yield from (
            Finding(path, line, f"{asked}: ask the model's family") for line, asked in found.items()
        )


def is_of_family(path: str) -> bool:
    """Whether it is one of the places that know one family."""
    match path.split("/"):
        case ["inference", "models", _, _, *_]:
            return True
        case ["train", "families", file]:
            return file not in ("__init__.py", "base.py")
        case ["train", "families", _, _, *_]:
            return True
    return False


def model_classes(tree: Tree) -> frozenset[str]:
    """Return the names of all classes of models and families, with those they derive from."""
    bases: dict[str, set[str]] = defaultdict(set)
    for node in class_definitions(tree):
        bases[node.name] |= {last_name(base) for base in node.bases}
    found = set(ROOTS)
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    while more := {one for name in found for one in bases[name] if one in bases} - found:
        found |= more
    return frozenset(found)


def class_definitions(tree: Tree) -> list[ast.ClassDef]:
    """Return every class of the packages."""
    own = (parsed for path, parsed in tree.parsed.items() if top_folder(path) in PACKAGES)
    return [node for one in own for node in ast.walk(one) if isinstance(node, ast.ClassDef)]


def questions(tree: Tree, classes: frozenset[str]) -> frozenset[str]:
    """Return the names `is_…` and `has_…` that the classes of models define."""
    found = set()
    for node in class_definitions(tree):
        if node.name not in classes:
            continue
        for member in node.body:
            match member:
                case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(name)
    return frozenset(name for name in found if name.startswith(("is_", "has_")))


def last_name(node: ast.expr) -> str:
    """`B` of `B`, of `a.B` and of `B[T]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_name(value)
    return ""


def asks(node: ast.AST, classes: frozenset[str], names: frozenset[str]) -> str | None:
    """Return what a node asks of a model, or None."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
            return named_class(kinds, classes)
        case ast.MatchClass(cls=kind):
            return named_class(kind, classes)
        case ast.Attribute(attr=name, ctx=ast.Load()):
            return name if name in names or ASKS_FAMILY.fullmatch(name) else None
        case ast.Name(id=name, ctx=ast.Load()):
            return name if ASKS_FAMILY.fullmatch(name) else None
        case ast.Compare():
            return compared_type(node, classes) or compared(node)
        case ast.Match(subject=subject):
            return compared_subject(subject)
    return None


def named_class(kinds: ast.expr, classes: frozenset[str]) -> str | None:
    """Return the first class of a model among the second arguments of `isinstance`."""
    found = [one for node in ast.walk(kinds) if (one := class_name(node)) in classes]
    return found[0] if found else None


def class_name(node: ast.AST) -> str:
    """`B` of `B` and of `a.B`, else nothing."""
    return last_name(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def compared_type(node: ast.Compare, classes: frozenset[str]) -> str | None:
    """`type(x) is BaseModel`."""
    sides = [node.left, *node.comparators]
    if not any(isinstance(one, ast.Call) and last_name(one.func) == "type" for one in sides):
        return None
    return next((one for side in sides if (one := named_class(side, classes))), None)


def compared(node: ast.Compare) -> str | None:
    """Return what is compared: a prediction type, the name of a family or of a part."""
    sides = [node.left, *node.comparators]
    if any(isinstance(one, ast.Constant) and one.value is None for one in sides):
        return None
    if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        return "family" if any(last_name(one) == "family" for one in sides) else None
    texts = {text for side in sides for text in constants(side)}
    if texts & set(PREDICTIONS) or any(asked_name(one) == "prediction_type" for one in sides):
        return "prediction_type"
    if not texts:
        return None
    if texts & set(PARTS) and any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
        return min(texts & set(PARTS))
    return next((one for side in sides if (one := compared_subject(side))), None)


def compared_subject(node: ast.expr) -> str | None:
    """Return `prediction_type` or the name of a family, if that is what a node reads."""
    if asked_name(node) == "prediction_type":
        return "prediction_type"
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    text = ".".join(ast.unparse(node).split(".")[-2:])
    ends = (text, text.split(".")[-1])
    return next((one for one in ends if FAMILY_NAMES.fullmatch(one)), None)


def asked_name(node: ast.expr) -> str:
    """Return the name, attribute or key that a node reads: `a.b`, `a["b"]`, `a.get("b")`."""
    match node:
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]):
            return key
        case ast.Name() | ast.Attribute():
            return last_name(node)
    return ""


def constants(node: ast.expr) -> list[str]:
    """Texts of a constant, or of a tuple, list or set of them."""
    nodes = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [
        one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print the lines of the working tree, or of a revision, and how many they are."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.architecture.type_switches",
        description="List what asks for types of models.",
    )
    found = sorted(type_switches(read_tree(parser, arguments)))
    files = len({one.path for one in found})
    sys.stdout.writelines(f"{one}\n" for one in [*found, f"{len(found)} in {files} files"])


if __name__ == "__main__":
    main()
