"""Wrong bytes from good ones: by the byte, and by what the bytes mean (values, headers, columns,
pieces of a template)."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]

# what breaks parsers: ends of ranges, deep nesting, other encodings, other types in their place
TOKENS = [b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\r"]
TOKENS += [b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000, b"null", b"true", b'""', b"[]", b"{}"]
TOKENS += [b"\\ud800", b"&a [*a]", b"*a", b"!!python/object:os.system", b"<<: ", b"\xe2\x80\xa8"]
TOKENS += [b"{% for i in range(10**9) %}", b"{{ x.__class__ }}", b"\xef\xbb\xbf", b"\n", b'"']
TOKENS += [b"0x1", b":", b",", b"\t", b"---\n", b"$(", b"${a}", b"\\"]
ODD_VALUES: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0]
ODD_VALUES += [float("nan"), float("inf"), 1e308, "", " ", "x", "\x00", "\ud800", "é" * 300, "../x"]
ODD_VALUES += ["/etc/passwd", "9" * 5000, "null", "[1]", [], {}, [[]], [None], {"": 0}, [1, "a"]]
ODD_VALUES += [{"a": {"b": [1]}}, "${a.b}", "{x}", "1e5", "-", "*", "a" * 5000, ["a"] * 200, b""]
PIECES = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m['role'] }}",
    "{% if m %}",
]
PIECES += [
    "{% endif %}",
    "{% set x = x ~ 'a' %}",
    "{% macro f(n) %}",
    "{% endmacro %}",
    "{{ f(3) }}",
]
PIECES += [
    "{{ messages | tojson }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ range(10 ** 5) | list }}",
    "{#",
    "#}",
]
PIECES += ["{{ m.content | center(10 ** 8) }}", "{{ raise_exception('no') }}", "{{ messages[99] }}"]
PIECES += [
    "{{ strftime_now('%Y') }}",
    "{{ ''.__class__ }}",
    "{%- break %}",
    "{{ 1 // 0 }}",
    "{% raw %}",
]
PIECES += ["{{ lipsum(n=10 ** 7) }}", "{{ m.content.split('a')[0] }}", "{{ tools[0].x.y }}", "{{"]
PIECES += ["{% generation %}", "{% endgeneration %}", "{{ x.x.x }}", "{{ messages | sum }}", "%}"]
PIECES += [
    "{% set n = namespace(x='ab') %}",
    "{% set n.x = n.x ~ n.x %}",
    "<|im_end|>\n",
    "{{ n.x }}",
]
PIECES += [
    "{% for i in range(99999) %}",
    "{{ '%s' % m }}",
    "{{ m | items | list }}",
    "{{ cycler() }}",
]


def raw(seed: bytes, rng: random.Random) -> bytes:
    """One to four changes: a flipped bit, bytes cut, doubled, moved or put in."""
    found = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1)
        end = min(len(found), place + rng.choice((1, 1, 2, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[place:end]
        elif kind == 2:
            found[place:place] = found[place:end] * rng.choice((1, 2, 50))
        elif kind == 3:
            found[place:end] = rng.choice(TOKENS)
        elif kind == 4:
            found[place:place] = rng.choice(TOKENS)
        else:
            found = found[:place]
    return bytes(found)


def changed_value(value: Any, rng: random.Random) -> Any:
    """A copy with one to three nodes replaced, removed, renamed, doubled or put in."""
    box = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        _change_one(box, rng)
    return box[0]


def _change_one(box: list[Any], rng: random.Random) -> None:
    places = list(_places(box))
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind < 3:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif kind == 3 and holder is not box:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        name = key + "x" if rng.random() < 0.5 else str(rng.choice(ODD_VALUES))[:50]
        holder[name] = holder.pop(key)
    else:
        other, at = rng.choice(places)
        holder[key] = copy.deepcopy(other[at])


def _places(box: list[Any]) -> list[tuple[Any, Any]]:
    """(holder, key) of every node below the box."""
    found: list[tuple[Any, Any]] = [(box, 0)]
    for holder, key in found:
        value = holder[key]
        if isinstance(value, dict):
            found += [(value, name) for name in value]
        elif isinstance(value, list):
            found += [(value, index) for index in range(min(len(value), 20))]
    return found


def _json(value: Any) -> bytes:
    text = json.dumps(value, default=lambda other: other.decode("latin-1"))
    return text.encode("utf-8", "surrogatepass")


@cache
def _from_json(seed: bytes) -> Any:
    return json.loads(seed)


def by_json(seed: bytes, rng: random.Random) -> bytes:
    """A JSON text whose values are wrong."""
    return _json(changed_value(_from_json(seed), rng))


def by_lines(seed: bytes, rng: random.Random) -> bytes:
    """JSON lines of which one is wrong."""
    lines = seed.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = by_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


@cache
def _from_yaml(seed: bytes) -> Any:
    import yaml

    return yaml.safe_load(seed)


def by_yaml(seed: bytes, rng: random.Random) -> bytes:
    """A YAML text whose values are wrong."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    value = changed_value(_from_yaml(seed), rng)
    try:
        text: str = yaml.dump(value, Dumper=dumper, allow_unicode=True)
        return text.encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, TypeError):
        return _json(value)


def by_header(seed: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else, with the length that it then has."""
    (size,) = struct.unpack("<Q", seed[:8])
    head = by_json(seed[8 : 8 + size], rng)
    length = len(head) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, len(head) * 2))
    return struct.pack("<Q", length) + head + seed[8 + size :]


def by_pieces(seed: bytes, rng: random.Random) -> bytes:
    """A template with pieces of others in it."""
    text = seed.decode()
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(PIECES) + text[place:]
    return text.encode()


@cache
def _from_parquet(seed: bytes) -> Any:
    from pyarrow import parquet

    return parquet.read_table(io.BytesIO(seed)).to_pylist()


def by_columns(seed: bytes, rng: random.Random) -> bytes:
    """A parquet file of rows that are wrong, or of columns that hold other types."""
    import pyarrow
    from pyarrow import parquet

    rows = _from_parquet(seed)
    for _ in range(20):
        changed = changed_value(rows, rng)
        try:
            out = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(changed), out)
            return out.getvalue()
        except (
            pyarrow.ArrowException,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ):
            continue
    return seed


# --- what comes over a wire

STATUS = [b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 302 Found", b"HTTP/1.1 307 x", b"HTTP/9"]
STATUS += [b"HTTP/1.1 503 Busy", b"HTTP/1.1 404", b"HTTP/1.1 999 x", b"HTTP/1.1 100 Continue", b""]
STATUS += [b"HTTP/1.1 204 No", b"HTTP/1.1 304 No", b"ICY 200 OK", b"HTTP/1.1 -1 x", b"x" * 70_000]
REQUESTS = [b"GET //[ HTTP/1.1", b"GET /t/state?have=a:b:c,, HTTP/1.1", b"GET", b"GET /t HTTP/1.1"]
REQUESTS += [b"GET /t/rollouts?least=nan&most=1e999 HTTP/1.1", b"GET http://[::1/t/ HTTP/1.1"]
REQUESTS += [
    b"GET /t/%00/..%2f HTTP/1.1",
    b"POST /t/save HTTP/1.1",
    b"GET /t/save HTTP/0.9",
    b"\x16",
]
REQUESTS += [b"GET /t/rollouts?step=-1&text=%ff HTTP/1.1", b"GET /" + b"a" * 70_000 + b" HTTP/1.1"]
HEADS = [b"Content-Length: -1", b"Content-Length: 99999999999999", b"Content-Length: x", b": x"]
HEADS += [b"Content-Length: 2", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"x"]
HEADS += [
    b"Location: http://[",
    b"Location: file:///etc/passwd",
    b"Location: //",
    b"Location: \xff",
]
HEADS += [b"Content-Type: image/png", b"Content-Encoding: gzip", b"Connection: upgrade", b" folded"]
HEADS += [b"Set-Cookie: " + b"a" * 70_000, b"\xff\xfe: \x00", b"Host: [", b"Host: a", b"Host:"]
HEADS += [b"WWW-Authenticate: Basic", b"Expect: 100-continue", b"Retry-After: -1"]


def by_http(seed: bytes, rng: random.Random) -> bytes:
    """An HTTP message of which the first line, headers, or the body as it is cut up are wrong."""
    head, _, body = seed.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(6)
        if kind == 0:
            lines[0] = rng.choice(STATUS if seed.startswith(b"HTTP/") else REQUESTS)
        elif kind == 1:
            lines[1:1] = [rng.choice(HEADS)] * rng.choice((1, 1, 2, 150))
        elif kind == 2 and len(lines) > 1:
            del lines[rng.randrange(1, len(lines))]
        elif kind == 3:
            body = rng.choice((b"", body[: len(body) // 2], body * 2, raw(body, rng), b"\xff" * 9))
        elif kind == 4:
            size = rng.choice(
                (b"%x" % len(body), b"-5", b"ffffffffffff", b"x", b"", b"1;a=b", b"0")
            )
            body = size + b"\r\n" + body + rng.choice((b"\r\n0\r\n\r\n", b"", b"\r\n0\r\na: b\r\n"))
        else:
            before = b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((1, 3, 300))
            lines[0] = before + lines[0] if seed.startswith(b"HTTP/") else lines[0]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def by_frames(seed: bytes, rng: random.Random) -> bytes:
    """Frames (four bytes of length, then JSON) of which one says something else, or another
    length."""
    return _framed(seed, rng, struct.Struct(">I"))


def by_messages(seed: bytes, rng: random.Random) -> bytes:
    """The same with lengths that are followed by their complements."""
    return _framed(seed, rng, struct.Struct(">II"))


def _framed(seed: bytes, rng: random.Random, head: struct.Struct) -> bytes:
    frames, place = [], 0
    while place < len(seed):
        size = head.unpack_from(seed, place)[0]
        place += head.size + size
        frames.append(seed[place - size : place])
    wrong = rng.randrange(len(frames))
    frames[wrong] = by_json(frames[wrong], rng)
    lengths = [len(frame) for frame in frames]
    if rng.random() < 0.1:
        lengths[wrong] = rng.choice((0, 1, 2**31, 2**32 - 1, lengths[wrong] * 2))
    pairs = zip(lengths, frames, strict=True)
    numbers = len(head.format.strip(">"))
    return b"".join(
        head.pack(*(length, length ^ 0xFFFFFFFF)[:numbers]) + frame for length, frame in pairs
    )
