"""Chat templates by a grammar: what Jinja can say, mostly well-formed, and in part meant to take everything."""

from __future__ import annotations

import random

NAMES = ["messages", "message", "tools", "bos_token", "eos_token", "add_generation_prompt", "loop", "ns", "x", "self",
         "undefined_name", "range", "namespace", "raise_exception", "strftime_now", "documents", "dict", "cycler",
         "joiner",
         "lipsum", "m"]  # fmt: skip
ATTRIBUTES = ["role", "content", "a", "index", "last", "first", "items", "keys", "append", "__class__", "__globals__",
              "mro",
              "format", "join", "replace", "split", "upper", "__init__", "_x", "length", "strip", "get", "zfill",
              "ljust",
              "encode", "format_map", "previtem", "tool_calls", "center", "expandtabs", "update"]  # fmt: skip
FILTERS = ["trim", "length", "upper", "join(', ')", "tojson", "tojson(indent=4)", "default('x')", "list", "sort",
           "unique",
           "batch(3)", "slice(2)", "map('upper')", "map(attribute='role')", "selectattr('role', 'equalto', 'user')",
           "rejectattr('a')", "replace('a', 'aaaa')", "indent(8)", "wordwrap(1)", "center(100000)", "format(1)",
           "reverse",
           "first", "last", "items", "string", "int", "float", "abs", "round(2)", "safe", "escape", "truncate(3)",
           "xmlattr",
           "groupby('role')", "dictsort", "sum", "max", "min", "random", "attr('__class__')", "filesizeformat",
           "pprint", "urlize", "striptags", "batch(0)", "select('string')", "replace('', 'x' * 9)", "wordcount",
           "tojson(indent=10000)", "ljust(9)", "nosuchfilter"]  # fmt: skip
TESTS = ["defined", "none", "string", "mapping", "iterable", "sequence", "number", "even", "divisibleby(0)", "in [1]",
         "eq(1)",
         "callable", "nosuchtest", "true", "boolean"]  # fmt: skip
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
TEXT = ["<|im_start|>", "\n", "text ", "{# note #}", "é", "\x1b", "{", "%}", "\u202e", ""]


def expression(rng: random.Random, depth: int) -> str:
    if depth <= 0 or rng.random() < 0.2:
        return rng.choice([
            *NAMES, "'a'", "\"b\"", "1", "0", "-1", "3.5", "none", "true", "[]", "{}", "10 ** 9", "2 ** 70",
            "'a' * 1000000",
            "range(1000000000)", "[1] * 10000000", "'%s' * 99", "1e308 * 10", "'{:999999999}'", "'%999999d'",
        ])  # fmt: skip
    inner = [expression(rng, depth - 1 - rng.randrange(2)) for _ in range(3)]
    match rng.randrange(14):
        case 0 | 1:
            return f"{inner[0]}.{rng.choice(ATTRIBUTES)}"
        case 2:
            return f"{inner[0]}[{inner[1]}]"
        case 3:
            start, stop = rng.choice(["", "-1", inner[1]]), rng.choice(["", inner[2]])
            return f"{inner[0]}[{start}:{stop}{rng.choice(['', '::', ':-1'])}]"
        case 4 | 5:
            return f"({inner[0]} {rng.choice(OPERATORS)} {inner[1]})"
        case 6 | 7 | 8:
            return f"{inner[0]}|{rng.choice(FILTERS)}"
        case 9:
            return f"({inner[0]} is {rng.choice(['', 'not '])}{rng.choice(TESTS)})"
        case 10:
            return f"{inner[0]}({', '.join(inner[1 : 1 + rng.randrange(3)])})"
        case 11:
            return f"({inner[0]} if {inner[1]} else {inner[2]})"
        case 12:
            return f"[{', '.join(inner)}]"
        case _:
            return f"{{{inner[0]}: {inner[1]}, 'k': {inner[2]}}}"


def statements(rng: random.Random, depth: int) -> str:
    return "".join(_statement(rng, depth) for _ in range(rng.choice((1, 2, 3))))


def _statement(rng: random.Random, depth: int) -> str:
    body = statements(rng, depth - 1) if depth > 0 else rng.choice(TEXT)
    value, dash = expression(rng, rng.choice((0, 1, 2, 4))), rng.choice(["", "", "-"])
    match rng.randrange(14):
        case 0 | 1 | 2:
            return f"{{{{{dash} {value} {dash}}}}}"
        case 3 | 4:
            return f"{{% for m in messages {dash}%}}{body}{{% endfor %}}"
        case 5:
            return f"{{% for {rng.choice(['x', 'a, b', 'm'])} in {value} %}}{body}{{% else %}}{body[:20]}{{% endfor %}}"
        case 6:
            return f"{{% if {value} %}}{body}{{% elif not {value} %}}{{% else %}}{body}{{% endif %}}"
        case 7:
            return f"{{% set {rng.choice(['x', 'ns.x', 'messages', 'x, m'])} = {value} %}}"
        case 8:
            return f"{{% set ns = namespace(x={value}) %}}{body}"
        case 9:
            body += rng.choice(["", "{{ f(a) }}", "{{ caller() }}"])
            return f"{{% macro f(a, b=1) %}}{body}{{% endmacro %}}{{{{ f(1) }}}}"
        case 10:
            return f"{{% generation %}}{body}{{% endgeneration %}}"
        case 11:
            return rng.choice(["{% break %}", "{% continue %}", "{% include 'x' %}", "{% extends messages %}",
                               "{% do x %}",
                               "{% import 'x' as y %}", "{% raw %}{{{% endraw %}", "{{ raise_exception('no') }}",
                               "{% block a %}b{% endblock %}", "{{ self.a() }}", "{% call f(1) %}x{% endcall %}",
                               "{% filter upper %}x{% endfilter %}", "{% with y = 1 %}{{ y }}{% endwith %}",
                               "{% autoescape true %}",
                               "{{ strftime_now('%Y' * 1000) }}", "{% set x %}a{% endset %}"])  # fmt: skip
        case 12:
            return "{{ " + "(" * 50 + "1" + ")" * 50 + " }}"
        case _:
            return rng.choice(TEXT)


def template(rng: random.Random) -> str:
    """A whole template; one in ten is cut or has a wrong character."""
    text = statements(rng, rng.choice((1, 2, 3)))
    if rng.random() < 0.02:
        text = "{% for x in range(9) %}" * rng.choice((5, 15, 150)) + text + "{% endfor %}" * rng.choice((5, 15, 150))
    if rng.random() < 0.1 and text:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", "{%", "}}", "\x00", "'", "\ud800"]) + text[at + 1 :]
    return text
