"Reads functions, classes and their docments (a comment behind each parameter) from source text, without importing it."

import ast
import io
import tokenize
from dataclasses import dataclass, field
from html import escape


@dataclass
class Symbol:
    "A public function, class, method or property."

    name: str
    kind: str
    line: int
    end: int
    doc: str
    rows: list = field(default_factory=list)  # (names, type, default, text)
    returns: tuple = ('', '')  # type, text
    members: list = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.name.lower()


def comments(source) -> dict:
    "Line number -> text of its comment."
    return {
        t.start[0]: t.string.lstrip('# ').strip()
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }


def signature_end(node, source) -> int:
    "The line of the colon that ends a def."
    depth, started = 0, False
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.start[0] < node.lineno or t.type != tokenize.OP:
            continue
        if t.string in '([{':
            depth, started = depth + 1, True
        elif t.string in ')]}':
            depth -= 1
        elif t.string == ':' and started and not depth:
            return t.start[0]


def _type(annotation, default) -> str:
    "The annotation; without one, the type of a plain default."
    if annotation is not None:
        return annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    return type(default.value).__name__ if isinstance(default, ast.Constant) and default.value is not None else ''


def _text(node) -> str:
    return '' if node is None else ast.unparse(node)


def arguments(node) -> list:
    "(name, annotation, default, line) of every argument but self."
    a = node.args
    plain = a.posonlyargs + a.args
    pairs = [(x, '', d) for x, d in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)]
    if a.vararg:
        pairs.append((a.vararg, '*', None))
    pairs += [(x, '', d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        pairs.append((a.kwarg, '**', None))
    return [
        (star + x.arg, x.annotation, d, (d or x).end_lineno) for x, star, d in pairs if x.arg not in ('self', 'cls')
    ]


def function(node, source, said, prefix='') -> Symbol:
    "A Symbol from a def; arguments that share a line share its comment."
    last = signature_end(node, source)
    rows = []
    for name, annotation, default, line in arguments(node):
        text = '' if line == last else said.get(line, '')
        row = (line, [name], _type(annotation, default), _text(default), text)
        if rows and text and rows[-1][0] == line and rows[-1][2:] == row[2:]:
            rows[-1][1].append(name)
        else:
            rows.append(row)
    kind = 'property' if any(_text(d).endswith('property') for d in node.decorator_list) else 'function'
    return Symbol(
        prefix + node.name,
        kind,
        node.lineno,
        node.end_lineno,
        ast.get_docstring(node) or '',
        [(', '.join(names), *rest) for _, names, *rest in rows],
        (_text(node.returns), said.get(last, '')),
    )


def class_(node, source, said) -> Symbol:
    "A Symbol from a class: fields of records, arguments of `__init__`, public methods with a docstring."
    made = Symbol(node.name, 'class', node.lineno, node.end_lineno, ast.get_docstring(node) or '')
    record = any('dataclass' in _text(d) for d in node.decorator_list) or any(
        _text(b).endswith('NamedTuple') for b in node.bases
    )
    for x in node.body:
        if isinstance(x, ast.AnnAssign) and record and not x.target.id.startswith('_'):
            made.rows.append((x.target.id, _type(x.annotation, x.value), _text(x.value), said.get(x.end_lineno, '')))
        elif isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef):
            if x.name == '__init__':
                made.rows, made.returns = function(x, source, said).rows, ('', '')
            elif ast.get_docstring(x) and not x.name.startswith('_'):
                made.members.append(function(x, source, said, f'{node.name}.'))
    return made


def symbols(source) -> list:
    "Public functions and classes of a module or cell, in order."
    said = comments(source)
    read = {ast.FunctionDef: function, ast.AsyncFunctionDef: function, ast.ClassDef: class_}
    return [
        read[type(x)](x, source, said) for x in ast.parse(source).body if type(x) in read and not x.name.startswith('_')
    ]


def constants(source) -> list:
    "(name, value, text) of public capitals."
    said = comments(source)
    return [
        (x.targets[0].id, ast.unparse(x.value), said.get(x.end_lineno, ''))
        for x in ast.parse(source).body
        if isinstance(x, ast.Assign)
        and isinstance(x.targets[0], ast.Name)
        and x.targets[0].id.isupper()
        and x.targets[0].id[0] != '_'
    ]


def _html(text) -> str:
    "Escaped; `code` stays code."
    return ''.join(f'<code>{escape(p)}</code>' if i % 2 else escape(p) for i, p in enumerate(text.split('`')))


def _code(text) -> str:
    return f'<code>{escape(text)}</code>' if text else ''


def table(head, rows, kind='rows') -> str:
    "An HTML table whose wide content scrolls by itself."

    def line(tag, cells):
        return '<tr>' + ''.join(f'<{tag}>{c}</{tag}>' for c in cells) + '</tr>'

    return (
        f'<div class="scroll"><table class="{kind}"><thead>'
        + line('th', head)
        + '</thead><tbody>'
        + ''.join(line('td', r) for r in rows)
        + '</tbody></table></div>'
    )


def _call(s) -> str:
    "name(a, b=1) as it is called."
    if s.kind == 'property':
        return s.name
    args = [n if not default or ',' in n else f'{n}={default}' for n, _, default, _ in s.rows]
    return f'{s.name}({", ".join(args)})'


def render(s, url, level=3) -> str:
    "Markdown of a Symbol: heading, call, sentence, table, members."
    parts = [
        f'{"#" * level} `{s.name}` {{ #{s.anchor} .symbol }}',
        f'<p class="call"><code>{escape(_call(s))}{" → " + escape(s.returns[0]) if s.returns[0] else ""}</code> '
        f'<a class="source" href="{url}#L{s.line}-L{s.end}">source<span class="hidden"> of {s.name}</span></a></p>',
    ]
    if s.doc:
        parts.append(s.doc)
    rows = [(_code(n), _code(t), _code(d), _html(text)) for n, t, d, text in s.rows]
    if s.returns[1] or (s.returns[0] and rows):
        rows.append(('<em>returns</em>', _code(s.returns[0]), '', _html(s.returns[1])))
    if rows:
        parts.append(table(('parameter', 'type', 'default', 'meaning'), rows, 'rows params'))
    return '\n\n'.join(parts + [render(m, url, level + 1) for m in s.members])


def module_page(name, source, url, chapter) -> str:
    "The API page of a module."
    doc = ast.get_docstring(ast.parse(source)) or ''
    parts = [
        f'# bcss_nb.{name}',
        doc,
        f'The chapter [{chapter[0]}](../{chapter[1]}) explains it. [Source on GitHub]({url})',
    ]
    fixed = [(_code(n), _code(v if len(v) < 120 else v[:117] + '...'), _html(text)) for n, v, text in constants(source)]
    if fixed:
        parts += ['## Constants', table(('name', 'value', 'meaning'), fixed)]
    return '\n\n'.join(parts + [render(s, url, 2) for s in symbols(source)]) + '\n'
