"""What edgekit can say: every finding rule and every error message, read from the code without running it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge import budgets, errors

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("edge", "targets", "calibration")
_EDGE_TPU_RULES = "targets/edgetpu/rules.toml"
_OPEN = "…"


@dataclass(frozen=True, kw_only=True)
class Told:
    """A finding or an error as the code writes it: `message` and `fix` with `‹name›` where a value is put in."""

    rule: str
    severity: str
    message: str
    fix: str
    module: str


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield the path, relative to the project, and the tree of each module."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            # edge/targets and edge/calibration are links to folders that are read themselves.
            if not {"targets", "calibration"} & set(path.relative_to(ROOT).parts[1:-1]):
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def findings() -> list[Told]:
    """Return every finding that the code can make, and every reason of a verdict on a measurement, by rule."""
    found = [told for module, tree in sources() for told in _Module(module, tree).findings()]
    found += [_edge_tpu(rule) for rule in tomllib.loads((ROOT / _EDGE_TPU_RULES).read_text("utf-8"))["rules"]]
    found += [_broken(check) for check in budgets.KEYS]
    return _merged(found)


def messages() -> list[Told]:
    """Return every error that the code raises on purpose; `rule` is its class."""
    found = [told for module, tree in sources() for told in _Module(module, tree).errors()]
    return sorted(set(found), key=lambda t: (t.rule, t.message, t.module))


def _edge_tpu(rule: dict[str, str]) -> Told:
    return Told(
        rule=f"EDGETPU_{rule['id']}",
        severity="info" if rule["id"] == "FLOAT_INPUT" else "warning",
        message="‹n› operators stay on the CPU (‹names›), the first is number ‹first›: ‹reason› (‹certainty›).",
        fix=rule["fix"],
        module=_EDGE_TPU_RULES,
    )


def _broken(check: str) -> Told:
    name = f"BUDGET_{check.upper()}"
    return Told(
        rule=name,
        severity="error",
        message="‹number› is over (or under) the budget of ‹limit›",
        fix="",
        module="edge/report/sarif.py",
    )


def _merged(found: list[Told]) -> list[Told]:
    """Keep one entry for each rule and text: rules.toml has several entries with one id."""
    return list(dict.fromkeys(sorted(found, key=lambda t: (t.rule, t.module, t.message, t.fix))))


class _Module:
    """One module's calls that make findings and errors."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.tree = tree
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def _calls(self, *names: str) -> Iterator[ast.Call]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node

    def findings(self) -> Iterator[Told]:
        for call in self._calls("Finding", "Reason"):
            keywords = {k.arg: k.value for k in call.keywords}
            if "rule" not in keywords or self.name == "edge/report/sarif.py":
                continue
            for rule, values in self._rules(call, keywords["rule"]):
                message, fix = (self._given(keywords.get(k), values, call) for k in ("message", "fix"))
                severity = self._severity(keywords.get("severity"), call)
                yield Told(rule=rule, severity=severity, message=message, fix=fix, module=self.name)
        if self.name == "targets/edgetpu/compiler_log.py":
            yield from self._compiler_errors()

    def _given(self, node: ast.expr | None, values: dict[str, str], call: ast.Call) -> str:
        """Return the text of a finding's field; what a caller of the function around it hands over comes from there."""
        names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in values] if node else []
        return values[names[0]] if names else self.text(node, call)

    def _rules(self, call: ast.Call, rule: ast.expr) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the rule, or where it is made of a function's argument each one that the module calls it with."""
        if isinstance(rule, ast.Constant):
            yield str(rule.value), {}
            return
        if ast.unparse(rule) == "f'EDGETPU_{rule}'":
            return  # from rules.toml
        function = self._function(call)
        names = [a.arg for a in function.args.args] if function else []
        calls = list(self._calls(function.name)) if function else []
        if not calls or "rule" not in names:
            raise ValueError(f"{self.name}:{call.lineno}: the rule {ast.unparse(rule)} is not known before it runs")
        for made in calls:
            given = {name: self.text(value, made) for name, value in zip(names, made.args, strict=False)}
            yield _substituted(rule, given.pop("rule")), {**dict.fromkeys(names, ""), **given}

    def _compiler_errors(self) -> Iterator[Told]:
        for call in self._calls("_known"):
            rule, _, reason, fix = (self.text(a, call) for a in call.args)
            yield Told(rule=rule, severity="error", message=reason, fix=fix, module=self.name)

    def errors(self) -> Iterator[Told]:
        kinds = [name for name, value in vars(errors).items() if _is_error(value)]
        for call in self._calls(*kinds):
            if not call.args:
                continue
            hint = next((k.value for k in call.keywords if k.arg == "hint"), None)
            message = self.text(call.args[0], call)
            if message.strip("‹›… .:") and _says_something(message):
                assert isinstance(call.func, ast.Name)
                yield Told(rule=call.func.id, severity="", message=message, fix=self.text(hint, call), module=self.name)

    def _severity(self, node: ast.expr | None, call: ast.Call) -> str:
        found = sorted(_constants(self._resolved(node, call)) & {"error", "warning", "info", "invalid"})
        return " or ".join(found) or "warning"

    def _function(self, node: ast.AST) -> ast.FunctionDef | None:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef):
                return node
        return None

    def _resolved(self, node: ast.expr | None, call: ast.AST) -> ast.expr | None:
        """Return what a name stands for: what the function, else the module, assigned to it last before the call."""
        if not isinstance(node, ast.Name):
            return node
        line = getattr(call, "lineno", 0)
        for scope in (self._function(call), self.tree):
            before = [v for v in _assignments(scope, node.id) if v and v.lineno <= line] if scope else []
            if before:
                return max(before, key=lambda v: v.lineno)
        return node

    def text(self, node: ast.expr | None, call: ast.AST) -> str:
        """Return an expression as text: what is put in at run time by its name in ‹ ›."""
        node = self._resolved(node, call)
        if node is None:
            return ""
        if isinstance(node, ast.Constant):
            return "" if node.value is None else str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._part(v, call) for v in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left, call) + self.text(node.right, call)
        if isinstance(node, ast.IfExp):
            return self._either(self.text(node.body, call), self.text(node.orelse, call))
        return f"‹{_short(node)}›"

    @staticmethod
    def _either(one: str, other: str) -> str:
        return f"{one} / {other}" if one and other else one or other

    def _part(self, node: ast.expr, call: ast.AST) -> str:
        if isinstance(node, ast.FormattedValue):
            return f"‹{_short(node.value)}›"
        return self.text(node, call)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.EdgekitError)


def _says_something(message: str) -> bool:
    outside, depth = [], 0
    for ch in message:
        depth += (ch == "‹") - (ch == "›")
        outside += [ch] if not depth and ch.isalpha() else []
    return len(outside) > 3


def _substituted(node: ast.expr, value: str) -> str:
    """Return `f"BASELINE_{rule}"` or `rule` with the value in place of the argument."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(p.value) if isinstance(p, ast.Constant) else value for p in parts)


def _assignments(scope: ast.AST, name: str) -> Iterator[ast.expr | None]:
    for node in ast.walk(scope):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in [t.id for t in targets if isinstance(t, ast.Name)]:
            yield node.value


def _constants(node: ast.expr | None) -> set[str]:
    parts = ast.walk(node) if node else ()
    return {n.value for n in parts if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _short(node: ast.expr) -> str:
    """Return a name for a value: the last word of what it is taken from."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Subscript):
        key = node.slice
        return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else _short(node.value)
    if isinstance(node, ast.Call):
        return _of_call(node)
    if isinstance(node, (ast.IfExp, ast.BinOp, ast.BoolOp)):
        names = [_short(n) for n in ast.iter_child_nodes(node) if isinstance(n, (ast.Name, ast.Attribute, ast.Call))]
        return names[0] if names else _OPEN
    return _OPEN


def _of_call(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in ("join", "format"):
        return _short(node.args[0]) if node.args else _OPEN
    if isinstance(function, ast.Attribute):
        return _short(function.value) if not node.args else function.attr
    return _short(node.args[0]) if node.args else _short(function)
