"""What a committed chapter must be. Each rule takes a notebook and answers with its problems, one line each.

    outputs      every code cell was run, in order, without an error and without a word on stderr
    thin         at most 12 lines a cell; no def, class, for or while: chapters tell, the package does
    parameters   one cell, literals only, `profile = "smoke"` among them, every name used
    prose        no measured number is typed: {glue:text} brings it (see `typed_numbers`)
    figures      every picture has alt text

`prose` skips code, math, links, citations, headings, and the numbers of sections, figures and tables.
In what is left it refuses decimals, percentages, powers (1e-3) and whole numbers from 1000 up (years apart),
unless the cell's metadata lists the number with its reason: {"numbers": {"3200": "features in the study"}}.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from saecore.chapter.driver import ParameterError, parameters, parameters_cells

MAX_LINES = 12
FORBIDDEN = {
    ast.FunctionDef: "def",
    ast.AsyncFunctionDef: "async def",
    ast.ClassDef: "class",
    ast.For: "for",
    ast.AsyncFor: "async for",
    ast.While: "while",
}
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")

NOT_PROSE = (
    r"<!--.*?-->",
    r"\$\$.*?\$\$",
    r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}",
    r"\\\[.*?\\\]|\\\(.*?\\\)",
    r"(?<![\\$])\$(?!\$).*?(?<!\\)\$",
    r"\{[\w:.-]+\}(`+).*?\1",
    r"(`+).*?\1",
    r"\]\([^)\s]*(?:\s+\"[^\"]*\")?\)",
    r"<?https?://[^\s>)]+>?",
    r"^\s{0,3}#{1,6}\s.*?$",
    r"^\(\S+\)=\s*$",
    r"^:[\w-]+:.*?$",
    r"\barXiv:\s*\d{4}\.\d{4,5}(?:v\d+)?",
    r"\b(?:Sections?|Secs?\.|Appendi(?:x|ces)|Apps?\.|Figures?|Figs?\.|Tables?|Equations?|Eqs?\.|Chapters?|Python|"
    r"version)\s+[A-Z]?\.?\d+(?:\.\d+)*(?:(?:,|\s+and|,\s+and|\s+to|–)\s*[A-Z]?\.?\d+(?:\.\d+)*)*",
)
FENCE = re.compile(r"^(`{3,}|~{3,}|:{3,})[ \t]*(\{[\w:.-]+\})?[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
PROSE_DIRECTIVES = set(
    "admonition note tip hint important warning caution seealso dropdown margin sidebar epigraph figure "
    "glue:figure table list-table card div".split()
)
NUMBER = re.compile(
    r"(?<![\w.])(?P<core>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?(?![\d])"
)


def source(cell: Any) -> str:
    """The cell's code as plain Python: IPython's magics and shell lines translated."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(cell.source)


def code_cells(notebook: Any) -> list[tuple[int, Any]]:
    """Code cells that are not empty, with their place in the notebook counted from 1."""
    return [(i, c) for i, c in enumerate(notebook.cells, 1) if c.cell_type == "code" and c.source.strip()]


def outputs(notebook: Any) -> list[str]:
    """Every code cell was run, in order, without an error and without a word on stderr."""
    problems = []
    cells = code_cells(notebook)
    if not any(cell.get("outputs") for _, cell in cells):
        problems.append("no cell holds an output; run it with `make chapters`")
    for wanted, (place, cell) in enumerate(cells, 1):
        if cell.get("execution_count") != wanted:
            problems.append(f"cell {place} has execution count {cell.get('execution_count')}, not {wanted}")
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                problems.append(f"cell {place} ended in {output.get('ename')}: {output.get('evalue')}")
            if output.output_type == "stream" and output.name == "stderr":
                problems.append(f"cell {place} wrote to stderr: {output.text.strip().splitlines()[0]!r}")
    return problems


def thin(notebook: Any) -> list[str]:
    """No cell is long, and none holds what belongs in the package."""
    problems = []
    for place, cell in code_cells(notebook):
        lines = len(cell.source.strip().splitlines())
        if lines > MAX_LINES:
            problems.append(f"cell {place} has {lines} lines; at most {MAX_LINES}, the rest belongs in the package")
        try:
            nodes = list(ast.walk(ast.parse(source(cell))))
        except SyntaxError as error:
            problems.append(f"cell {place} is not Python: {error.msg}")
            continue
        for node in nodes:
            if type(node) in FORBIDDEN:
                problems.append(f"cell {place} holds `{FORBIDDEN[type(node)]}`; that belongs in the package")
    return problems


def parameter_cell(notebook: Any) -> list[str]:
    """There is one cell of parameters: literals, `profile = "smoke"` among them, each used later."""
    tagged = parameters_cells(notebook)
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged `parameters`; there must be one"]
    try:
        known = parameters(notebook)
    except (ParameterError, SyntaxError) as error:
        return [str(error)]
    problems = []
    if known.get("profile") != "smoke":
        problems.append('the parameters cell does not set profile = "smoke"')
    later = notebook.cells[notebook.cells.index(tagged[0]) + 1 :]
    used: set[str] = set()
    for cell in later:
        if cell.cell_type == "code":
            try:
                tree = ast.parse(source(cell))
            except SyntaxError:
                continue
            used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    problems += [f"the parameter {name!r} is never used" for name in known if name not in used]
    return problems


def prose_of(markdown: str) -> str:
    """The markdown without what may hold any number. Directives that hold prose (notes, captions) stay."""
    markdown = FENCE.sub(_fenced, markdown)
    for pattern in NOT_PROSE:
        markdown = re.sub(pattern, " ", markdown, flags=re.MULTILINE | re.DOTALL)
    return markdown


def _fenced(match: re.Match[str]) -> str:
    directive = (match[2] or "").strip("{}")
    return FENCE.sub(_fenced, match[3]) if directive in PROSE_DIRECTIVES else " "


def _core(number: str) -> str:
    return re.sub(r"[,\s%]|per\s?cent", "", number)


def typed_numbers(markdown: str) -> list[str]:
    """Numbers in prose that look measured: 0.68, .5, 9 %, 1e-3, 1,602, 3200; not 12, not 2026."""
    found = []
    for match in NUMBER.finditer(prose_of(markdown)):
        core = _core(match["core"])
        whole = core.isdigit()
        year = whole and len(match["core"]) == 4 and 1900 <= int(core) < 2100
        if match["percent"] or not whole or (int(core) >= 1000 and not year):
            found.append(match[0].strip())
    return found


def prose(notebook: Any) -> list[str]:
    """No number is typed that looks measured, unless the cell lists it with a reason."""
    problems = []
    for place, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "markdown":
            continue
        allowed = {_core(number): reason for number, reason in cell.metadata.get("numbers", {}).items()}
        present = {_core(match["core"]) for match in NUMBER.finditer(prose_of(cell.source))}
        for number, reason in allowed.items():
            if not str(reason).strip():
                problems.append(f"cell {place} allows {number} without a reason")
            if number not in present:
                problems.append(f"cell {place} allows {number}, which its prose does not hold")
        for number in typed_numbers(cell.source):
            if _core(number) not in allowed:
                problems.append(
                    f"cell {place} types {number!r}; glue it, or list it with a reason under `numbers` in "
                    "the cell's metadata"
                )
    return problems


def figures(notebook: Any) -> list[str]:
    """Every picture has alt text."""
    problems = []
    for place, cell in code_cells(notebook):
        pictures = [o for o in cell.get("outputs", []) if any(kind in o.get("data", {}) for kind in PICTURES)]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if pictures and not alt.strip():
            problems.append(
                f"cell {place} shows a picture without alt text; give its metadata "
                '{"mystnb": {"image": {"alt": "..."}}}'
            )
    return problems


RULES: tuple[Callable[[Any], list[str]], ...] = (outputs, thin, parameter_cell, prose, figures)


def problems(notebook: Any) -> list[str]:
    """What keeps the notebook from being a chapter, by every rule; nothing where it is one."""
    return [problem for rule in RULES for problem in rule(notebook)]
