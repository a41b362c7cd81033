"""Hostile chat templates end soon, in little memory, and in one line."""

import json
import re
import subprocess
import sys

import pytest

from lapinfer.errors import CheckpointError
from lapinfer.text.template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
BIG = "{% set x = 'a' * 1500000 %}"


def lines(line, times=60):
    return "\n".join([line] * times)


REFUSED = {
    # Repetition
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(999999999) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "wide recursive loop": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "output": "{% macro m() %}{% for i in range(99999) %}" + "x" * 50_000 + "{% endfor %}{% endmacro %}{{ m() }}",
    "call block": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% for i in range(99999) %}"
    "{% for i in range(99999) %}x{% endfor %}{% endfor %}{% endcall %}",
    "comparisons": BIG + "{% set y = x[:-1] ~ 'a' %}{% for a in range(99999) %}{% if x == y %}{% endif %}{% endfor %}",
    "tests of a filter": BIG + "{{ range(99999) | map('string') | select('in', x) | list | length }}",
    "nothing selected": "{% for i in range(99999) %}{{ range(99999) | reject('defined') | list }}{% endfor %}",
    # Doubling
    "text": "{% set x = 'aaaaaaaa' %}" + lines("{% set x = x ~ x %}"),
    "a sum": "{% set x = 'aaaaaaaa' %}" + lines("{% set x = x + x %}"),
    "a block": "{% set x = 'aaaaaaaa' %}" + lines("{% set x %}{{ x }}{{ x }}{% endset %}"),
    "a list": "{% set x = [1] %}" + lines("{% set x = [x, x] %}") + "{{ x }}",
    "a dictionary": "{% set x = {} %}" + lines("{% set x = dict(a=x, b=x) %}") + "{{ x }}",
    "lists to compare": "{% set x = [1] %}{% set y = [1] %}" + lines("{% set x = [x, x] %}{% set y = [y, y] %}")
    + "{{ x == y }}",
    "arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% endif %}{% endmacro %}{{ m(60, 1, 1) }}",
    "after refunds": "{% for i in range(9999) %}{% set y = 2 ** -100000 %}{% endfor %}{% set x = 'a' * 4000000 %}"
    + lines("{% set x = x + x %}"),
    # Numbers
    "a product": "{{ 'a' * 10000000000 }}",
    "a product of a list": "{{ [0] * 999999999 }}",
    "a power": "{{ (10 ** 1000) ** 1000 }}",
    "squares": "{% set x = 10 ** 1000 %}" + lines("{% set x = x * x %}"),
    "a hexadecimal": "{{ ('f' * 1500000) | int(0, 16) }}",
    "bytes of a number": "{{ (1).to_bytes(999999999, 'big') }}",
    "rounding": "{{ 1.5 | round(999999999, 'ceil') }}",
    # Widths and counts
    "center": "{{ 'a' | center(99999999999) }}",
    "center of a block": "{% filter center(9999999999) %}a{% endfilter %}",
    "ljust": "{{ 'a'.ljust(99999999999) }}",
    "a bound method": "{% set f = 'a'.rjust %}{{ f(999999999) }}",
    "map": "{{ range(99999) | map('string') | map('center', 100000) | join }}",
    "% width": "{{ '%99999999999d' % 1 }}",
    "% width as a value": "{{ '%*d' % (9999999, 1) }}",
    "% widths": "{{ '%9999d' * 1000 % ((1,) * 1000) }}",
    "% fields": BIG + "{{ ('%(a)s' * 10000) % {'a': x} }}",
    "format filter": BIG + "{{ ('%(a)s' * 10000) | format(a=x) }}",
    "format width": "{{ '{:99999999999}'.format(1) }}",
    "format width as a value": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format fields": BIG + "{{ ('{0}' * 10000).format(x) }}",
    "format_map": BIG + "{{ ('{a}' * 10000).format_map({'a': x}) }}",
    "expandtabs": "{{ '\t'.expandtabs(999999999) }}",
    "a date": "{{ strftime_now('%0999999999d') }}",
    "dates": "{{ strftime_now('%c' * 100000) }}",
    "batch": "{{ [1] | batch(99999999, 'x') | list }}",
    "slice": "{{ [1] | slice(999999999) | list }}",
    "tojson's indent": "{{ [[1, 2]] | tojson(indent=1000000000) }}",
    "tojson's separators": BIG + "{{ range(9999) | list | tojson(separators=(x, x)) }}",
    "indent": "{{ ('\n' * 10000) | indent(100000) }}",
    "indent by text": BIG + "{{ ('\n' * 1000) | indent(x) }}",
    # Products of texts
    "replace": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replace nothing": "{% set x = 'a' * 100000 %}{{ x | replace('', x) }}",
    "join": BIG + "{{ range(10000) | join(x) }}",
    "join's method": BIG + "{{ x.join('b' * 100000) }}",
    "join of characters": BIG + "{{ x | join }}",
    "split": "{% set x = 'a ' * 1000000 %}{{ x.split(' ') }}",
    "splitlines": "{% set x = '\\n' * 1000000 %}{{ x.splitlines() }}",
    "title": "{% set x = 'a b' * 500000 %}{{ x | title }}",
    "fromkeys": "{{ dict.fromkeys(range(99999), 'a' * 100000) }}",
    "sum of lists": "{{ ([range(100) | list] * 300) | sum(start=[]) }}",
    "rsplit": BIG + "{{ x.rsplit('b' + x[:700000]) }}",
    "rfind": BIG + "{{ x.rfind('b' + x[:700000]) }}",
    "strip": BIG + "{{ x.strip('b' * 700000 ~ 'a') }}",
    "wordwrap": BIG + "{{ x | wordwrap(1) }}",
    "striptags": "{{ ('<!---->' * 200000) | striptags }}",
    "escape": "{{ ('<' * 2000000) | e }}",
    "pprint": "{{ range(50000) | list | pprint }}",
    # Depth
    "deep source": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "nested source": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "deep tuple": "{% set ns = namespace(x=(1,)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}",
    # Source
    "huge source": " " * 1_000_000,
    "names": "".join(f"{{% set a{i} = 1 %}}" for i in range(1500)),
    "scoped blocks": "".join(f"{{% block a{i} scoped %}}{{% endblock %}}" for i in range(100)),
    "syntax": "{% for %}",
    # Forbidden
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.x }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    "a namespace's attribute": "{% set ns = namespace(_x=1) %}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "an iterator's method": "{{ ([1] | map('string')).close() }}",
    "undefined": "{{ nothing.at.all }}",
    "a long error": "{% set x = 'a ' * 500000 %}{{ {}[x].y }}",
}  # fmt: skip

ALLOWED = {
    "outputs": "{{ a }}" * 4000,
    "comparisons": "{{ 1 " + "< 2 " * 9000 + "}}",
    "branches": "{% macro m() %}" + "".join(f"{{% set a{i} = 1 %}}" for i in range(500))
    + "".join(f"{{% if b %}}{{% set a{i} = 2 %}}{{% endif %}}" for i in range(500)) + "{% endmacro %}",
    "elements": "{{ [" + "1," * 9000 + "] | length }}",
}  # fmt: skip
"""What takes the compiler long."""

CHILD = """
import json, resource, sys, time
from pathlib import Path
from lapinfer.text import budget
from lapinfer.text.template import ChatTemplate
budget.SECONDS = 0.25

def megabytes():
    status = Path("/proc/self/status")
    if status.exists():  # the largest that getrusage knows may be that of the process which has started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1e3)

for name, source in json.load(sys.stdin).items():
    began = time.process_time()
    try:
        end = len(ChatTemplate(source, "the template").render("hi"))
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    print(json.dumps([name, end, time.process_time() - began, megabytes()]), flush=True)
"""


def test_hostile_templates_end_soon_and_in_little_memory():
    sources = REFUSED | {f"compiling {name}": source for name, source in ALLOWED.items()}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(sources), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    ended = {name: rest for name, *rest in map(json.loads, child.stdout.splitlines())}
    assert list(ended) == list(sources), child.stderr
    for name, (end, seconds, megabytes) in ended.items():
        assert seconds < 2, (name, seconds)
        assert megabytes < 300, (name, megabytes)
        if name in REFUSED:
            assert isinstance(end, str), name
            assert re.match("(Checkpoint|Template)Error: the template", end), (name, end)
            assert "\n" not in end, name
            assert len(end) < 500, name
        else:
            assert isinstance(end, int), (name, end)


def test_what_looks_cheap_meets_the_deadline(monkeypatch):
    monkeypatch.setattr("lapinfer.text.budget.SECONDS", 0.1)
    source = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    with pytest.raises(CheckpointError, match=r"takes more than 0\.1 seconds"):
        ChatTemplate(source).render(USER)


def test_long_conversations_are_not_refused():
    long = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 4000} for i in range(100)]
    source = "{% for m in messages %}{{ m.content | trim | replace('word', 'sword') }}{% endfor %}"
    assert len(ChatTemplate(source).render(long)) > 2_000_000


def test_many_messages_are_not_refused():
    long = [{"role": "user", "content": "a few words of a message " * 8}] * 1000
    source = """\
    {%- set ns = namespace(last=0, seen=[]) %}
    {%- for m in messages %}{% set i = messages | length - 1 - loop.index0 %}
    {%- set ns.seen = ns.seen + [m] %}{% if m.content.split('</think>')[-1].strip() and i %}{{ m.content }}{% endif %}
    {%- endfor %}{{ ns.seen | length }}"""
    assert ChatTemplate(source).render(long).endswith("1000")


def test_the_budget_is_never_given_back():
    from lapinfer.text.budget import Budget

    budget = Budget()
    budget.allow(USER)
    for size in (0, -1, -(10**30), 0.5):
        before = budget.left
        budget.charge(size)
        assert budget.left < before
