"""Formulas of schedules and prompts: parsed by Python's grammar, computed by numexpr.

numexpr is what Deforum uses (`animation_key_frames.py`). Before it evaluates a formula, the syntax
tree is checked name by name, so that a mistake has a column, and no text can do anything but
compute. Beyond numexpr: `pi`, `e`, `max(a, b)`, `min(a, b)` and `a < b < c`.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from inference.runtime import require

Values = Mapping[str, "np.ndarray | float | int"]

ARITY = {
    **dict.fromkeys(
        ("abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "ceil", "cos",
         "cosh", "exp", "expm1", "floor", "isfinite", "isinf", "isnan", "log", "log10", "log1p",
         "log2", "round", "sign", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"), 1),
    **dict.fromkeys(
        ("arctan2", "copysign", "fmod", "hypot", "maximum", "minimum"), 2),
    "where": 3,
}  # fmt: skip
"""Function -> number of arguments."""

REDUCED = {"max": "maximum", "min": "minimum"}
CONSTANTS = {"pi": math.pi, "e": math.e}
LONGEST = 4000
"""Maximum number of characters of a formula."""

OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.LShift, ast.RShift,
    ast.BitAnd, ast.BitOr, ast.BitXor, ast.UAdd, ast.USub, ast.Invert,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
MOST_SHIFT = 62

NUMBER = re.compile(r"(?=.)([+-]?([0-9]*)(\.([0-9]+))?)")
"""Numbers as Deforum distinguishes them from formulas: neither `5.` nor `1e-3` is one."""

AROUND = re.compile(r"[\"'()]")
"""Characters that Deforum removes first; spaces inside stay, so that `( 5 )` is a formula."""


class FormulaError(ValueError):
    """A formula that cannot be computed."""

    def __init__(self, message: str, column: int = 0, place: int | None = None) -> None:
        super().__init__(message)
        self.column = column
        """Number of characters before the mistake."""
        self.place = place
        """Index of the value that is not a number, if that is the error."""


def is_number(text: str) -> bool:
    """Return whether Deforum reads a value as a number (interpolated), not as a formula."""
    bare = AROUND.sub("", text.strip())
    return NUMBER.fullmatch(bare) is not None and bare not in "+-"


def number_of(text: str) -> float:
    """Return the number that `is_number` has recognised."""
    return float(AROUND.sub("", text.strip()))


def compute(text: str, values: Values) -> np.ndarray:
    """Return the value of a formula, as floats.

    Args:
        text: the formula.
        values: name -> number, or one number per frame; all arrays have the same length.

    Raises:
        FormulaError: the formula is invalid, or its value is not a number.
        InputError: numexpr is not installed.
    """
    result = np.asarray(evaluated(text, values))
    if result.dtype.kind not in "biuf":
        raise FormulaError("does not come to a number")
    result = result.astype(np.float64)
    if not np.all(np.isfinite(result)):
        bad = int(np.flatnonzero(~np.isfinite(np.atleast_1d(result)))[0])
        value = np.atleast_1d(result)[bad]
        raise FormulaError(f"comes to {value}, which is not a number to use", place=bad)
    return result


def evaluated(text: str, values: Values) -> Any:
    """Return numexpr's value of a formula, in its own type.

    Raises:
        FormulaError: the formula cannot be parsed or computed.
    """
    tree, start = parsed(text)
    names: set[str] = set()
    checker = _Checker(values, names)
    try:
        formula = ast.unparse(ast.fix_missing_locations(checker.visit(tree.body)))
    except FormulaError as error:
        raise FormulaError(str(error), error.column + start) from None
    except RecursionError:
        raise FormulaError("is nested too deeply", start) from None
    used = {name: CONSTANTS.get(name) if name in CONSTANTS else values[name] for name in names}
    engine = numexpr()
    try:
        return engine.evaluate(formula, local_dict=used, global_dict={}, truediv=True)
    except (ArithmeticError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError,
            SyntaxError, MemoryError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormulaError(f"cannot be computed: {reason}", start) from None


def parsed(text: str) -> tuple[ast.Expression, int]:
    """Return the syntax tree of a formula, and the number of characters before it.

    Raises:
        FormulaError: it is not a formula.
    """
    bare = text.strip()
    start = len(text) - len(text.lstrip())
    if not bare:
        raise FormulaError("is empty; expected a number or a formula", start)
    if len(bare) > LONGEST:
        raise FormulaError(f"is longer than {LONGEST} characters", start)
    # One line, so that a mistake's column counts from the start.
    line = re.sub(r"\s", " ", bare)
    if "#" in line:
        raise FormulaError("'#' has no meaning in a formula", start + line.index("#"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(line, mode="eval"), start
    except SyntaxError as error:
        column = start + max(0, min((error.offset or 1) - 1, len(line)))
        raise FormulaError(f"is not a formula: {error.msg}", column) from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise FormulaError(
            f"is not a formula: {error or 'it is nested too deeply'}", start
        ) from None


class _Checker(ast.NodeTransformer):
    """Accepts only arithmetic, and rewrites it for numexpr."""

    def __init__(self, values: Values, used: set[str]) -> None:
        self.values = values
        self.used = used

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, OPERATORS):
            return node
        kind = {"BoolOp": "'and' and 'or' (write & and |)", "IfExp": "'if' (write where(a, b, c))"}
        raise fault(f"{kind.get(type(node).__name__, type(node).__name__)} is not possible", node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, bool | int | float):
            raise fault(f"{node.value!r} is not a number", node)
        if isinstance(node.value, int) and abs(node.value) >= 2**62:
            return ast.copy_location(ast.Constant(float_of(node.value, node)), node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.values and node.id not in CONSTANTS:
            known = ", ".join((*self.values, *CONSTANTS))
            hint = f"{node.id}(…) is a function; " if node.id in ARITY else ""
            raise fault(f"unknown name {node.id!r}; {hint}known are {known}", node)
        self.used.add(node.id)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            raise fault("'not' is not possible (write ~)", node)
        node.operand = self.visit(node.operand)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, OPERATORS):
            raise fault(f"{type(node.op).__name__} is not possible", node)
        if isinstance(node.op, ast.LShift | ast.RShift):
            by = node.right.value if isinstance(node.right, ast.Constant) else None
            if not isinstance(by, int) or not 0 <= by <= MOST_SHIFT:
                raise fault(f"<< and >> take a whole number from 0 to {MOST_SHIFT}", node.right)
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Pow):
            # As floats: integers have no negative powers in numexpr, and no upper limit in Python.
            left = ast.BinOp(left, ast.Mult(), ast.Constant(1.0))
        node.left, node.right = left, right
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for operator in node.ops:
            if not isinstance(operator, OPERATORS):
                raise fault("only ==, !=, <, <=, > and >= compare", node)
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        pairs: list[ast.expr] = [
            ast.Compare(sides[i], [operator], [sides[i + 1]]) for i, operator in enumerate(node.ops)
        ]
        whole = pairs[0]
        for pair in pairs[1:]:
            whole = ast.BinOp(whole, ast.BitAnd(), pair)
        return whole

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if node.keywords or (name not in ARITY and name not in REDUCED):
            known = ", ".join(sorted((*ARITY, *REDUCED)))
            raise fault(f"unknown function {name or '?'!r}; known are {known}", node)
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise fault("'*' is not possible here", node)
        wanted = ARITY.get(name, max(2, len(node.args)))
        if len(node.args) != wanted:
            raise fault(f"{name} takes {wanted} values, got {len(node.args)}", node)
        first, *others = [self.visit(argument) for argument in node.args]
        if name not in REDUCED:
            return ast.Call(ast.Name(name, ast.Load()), [first, *others], [])
        for other in others:
            first = ast.Call(ast.Name(REDUCED[name], ast.Load()), [first, other], [])
        return first


def float_of(number: int, node: ast.Constant) -> float:
    """Return an integer that is too large for numexpr, as a float."""
    try:
        return float(number)
    except OverflowError:
        raise fault("is too large a number", node) from None


def fault(message: str, node: ast.AST) -> FormulaError:
    """Return the error at a node."""
    return FormulaError(message, getattr(node, "col_offset", 0))


def numexpr() -> Any:
    """Import numexpr.

    Raises:
        InputError: it is not installed.
    """
    return require("numexpr", "animations", "numexpr", "anim")
