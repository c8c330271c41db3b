r"""From a cleaned LaTeX (or plain) formula to an expression tree. Nothing is evaluated.

The grammar is the one that answers are written in: numbers, letters with subscripts, fractions,
roots, powers, named functions, absolute values, factorials, binomials; a product needs no sign.
Whatever else stands there (words, sums, integrals) is `NotMath`: the caller compares it as text.
Units, lists, intervals and relations are taken apart before (`answer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from flint import fmpq, fmpz

MAX_NODES = 2_000
MAX_DEPTH = 60  # of brackets, signs and exponents inside each other
MAX_TREE_DEPTH = 150
MAX_DIGITS = 2_000


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _names(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth ln log exp"
    " max min gcd lcm Re Im arg"
)
_ARC = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = _names(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi"
    " rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma"
    " Phi Psi Omega ell hbar aleph"
)
_ACCENTS = _names("overline bar vec hat tilde overrightarrow widehat widetilde")
_FONTS = _names(
    "mathrm mathbf mathit mathsf mathcal mathbb boldsymbol operatorname text textbf textit textrm"
    " mbox"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+\.?\d*|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<word>[A-Za-z]+)"
    r"|(?P<symbol>\\[{}%|]|!!|\*\*|[-+*/^_(){}\[\]|!,;'%<>=:]))"
)
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


class NotMath(ValueError):
    """The text is no formula of this grammar."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    `op`: number, symbol, constant (pi, e, i, infty), add, mul, div, pow, neg, or the name of a
    function; `value` belongs to number and names."""

    op: str
    args: tuple[Node, ...] = ()
    value: fmpq | str | None = None


def number(value: int | fmpz | fmpq) -> Node:
    """A leaf that holds an exact rational."""
    return Node("number", (), fmpq(value))


def rational_of(node: Node) -> fmpq:
    """The value of a number's leaf."""
    assert isinstance(node.value, fmpq)
    return node.value


def walk(node: Node) -> Iterator[Node]:
    """Every node of the tree, parents first."""
    stack = [node]
    while stack:
        found = stack.pop()
        yield found
        stack.extend(found.args)


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables."""
    return frozenset(str(one.value) for one in walk(node) if one.op == "symbol")


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """The tree of a formula. Raises NotMath, also for what is longer or deeper than an answer is.

    >>> parse("2x+1").op, sorted(symbols(parse("a_1 g \\\\frac{b}{2}")))
    ('add', ['a_1', 'b', 'g'])
    """
    parser = _Parser(list(_tokens(text)))
    node = parser.sum()
    if parser.kind != "end":
        raise NotMath(f"unexpected {parser.text!r}")
    _check_size(node)
    return node


def _check_size(node: Node) -> None:
    level, depth, count = [node], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_TREE_DEPTH or count > MAX_NODES:
            raise NotMath("too many operations")
        level = [arg for one in level for arg in one.args]


Rule = Callable[["_Parser"], Node]


def _nested(rule: Rule) -> Rule:
    """A rule that may call itself: refuses what is nested deeper than MAX_DEPTH."""

    def guarded(parser: _Parser) -> Node:
        parser.depth += 1
        if parser.depth > MAX_DEPTH:
            raise NotMath("nested too deeply")
        node = rule(parser)
        parser.depth -= 1
        return node

    return guarded


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotMath(f"unexpected {text[position : position + 8]!r}")
        kind = str(match.lastgroup)
        yield kind, match.group(kind)
        position = match.end()
    yield "end", ""


def _times(left: Node, right: Node) -> Node:
    """A product of two, or one more factor of a product."""
    return Node("mul", (*left.args, right) if left.op == "mul" else (left, right))


class _Parser:
    """Recursive descent over tokens; one method a precedence level."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.position, self.depth = tokens, 0, 0
        self.bars = 0  # open absolute values: a bar then closes

    @property
    def kind(self) -> str:
        return self.tokens[self.position][0]

    @property
    def text(self) -> str:
        return self.tokens[self.position][1]

    def take(self, *texts: str) -> bool:
        """Moves on if the token is one of these."""
        if self.kind in ("symbol", "command") and self.text in texts:
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise NotMath(f"expected {text!r}, found {self.text!r}")

    @_nested
    def sum(self) -> Node:
        terms = [self.signed()]
        while self.text in ("+", "-") and self.kind == "symbol":
            sign = self.text
            self.position += 1
            term = self.product()
            terms.append(Node("neg", (term,)) if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    @_nested
    def signed(self) -> Node:
        if self.take("-"):
            return Node("neg", (self.signed(),))
        if self.take("+"):
            return self.signed()
        return self.product()

    def product(self) -> Node:
        found = self.power()
        while True:
            if self.take("*", "\\cdot", "\\times", "\\ast"):
                found = _times(found, self.signed_power())
            elif self.take("/", "\\div"):
                found = Node("div", (found, self.signed_power()))
            elif self.starts_factor():
                found = self._juxtaposed(found)
            else:
                return found

    @_nested
    def signed_power(self) -> Node:
        if self.take("-"):
            return Node("neg", (self.signed_power(),))
        if self.take("+"):
            return self.signed_power()
        return self.power()

    def _juxtaposed(self, left: Node) -> Node:
        """A product without a sign, or a mixed number such as `1\\frac{4}{5}`."""
        if left.op == "number" and self.kind == "number":
            raise NotMath("two numbers side by side")
        after_integer = self.tokens[self.position - 1][0] == "number" and left.op == "number"
        right = self.power()
        mixed = (
            after_integer
            and right.op == "div"
            and all(arg.op == "number" for arg in right.args)
            and all(rational_of(node).q == 1 for node in (left, *right.args))
            and rational_of(right.args[0]) < rational_of(right.args[1])
        )
        return Node("add", (left, right)) if mixed else _times(left, right)

    def starts_factor(self) -> bool:
        if self.kind in ("number", "word"):
            return True
        if self.kind == "command":
            return self.text not in ("\\cdot", "\\times", "\\div", "\\rfloor", "\\rceil", "\\bmod")
        return self.text in ("(", "{", "[", "\\{") or (self.text == "|" and self.bars == 0)

    def power(self) -> Node:
        base = self.postfix(self.primary())
        if self.take("^", "**"):
            if self.take("\\circ"):
                return self.postfix(Node("degree", (base,)))
            exponent = self.exponent()
            return self.postfix(Node("pow", (base, exponent)))
        return base

    @_nested
    def exponent(self) -> Node:
        if self.take("-"):
            return Node("neg", (self.exponent(),))
        if self.take("+"):
            return self.exponent()
        if self.kind == "word" and len(self.text) > 1 and self.text not in FUNCTIONS:
            self._split_word()
        found = self.primary()
        return Node("pow", (found, self.exponent())) if self.take("^", "**") else found

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                node = Node("factorial", (node,))
            elif self.take("%", "\\%"):
                node = Node("div", (node, number(100)))
            else:
                return node

    def primary(self) -> Node:
        if self.kind == "number":
            return self._number()
        if self.kind == "word":
            return self._word()
        if self.kind == "command":
            return self._command()
        if self.text in _CLOSING:
            return self._group()
        if self.text == "|":
            return self._absolute()
        raise NotMath(f"unexpected {self.text!r}")

    def _group(self) -> Node:
        closing = _CLOSING[self.text]
        self.position += 1
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.expect(closing)
        self.bars = bars
        return node

    def _absolute(self) -> Node:
        self.expect("|")
        self.bars += 1
        node = self.sum()
        self.expect("|")
        self.bars -= 1
        return Node("abs", (node,))

    def _number(self) -> Node:
        text = self.text.replace(",", "")
        self.position += 1
        if len(text) > MAX_DIGITS:
            raise NotMath("too many digits")
        whole, _, decimals = text.partition(".")
        value = fmpq(fmpz(int((whole or "0") + decimals)), fmpz(10) ** len(decimals))
        if self.take("\\overline", "\\bar"):
            return number(value + self._repeated(len(decimals)))
        if self.take("_"):
            raise NotMath("a number with an index")
        return number(value)

    def _repeated(self, num_decimals: int) -> fmpq:
        braced = self.take("{")
        digits = self.text
        if self.kind != "number" or not digits.isdigit():
            raise NotMath("no digits under the bar")
        self.position += 1
        if braced:
            self.expect("}")
        return fmpq(int(digits), (10 ** len(digits) - 1) * 10**num_decimals)

    def _split_word(self) -> None:
        """The word's first letter becomes a token of its own."""
        word = self.text
        self.tokens[self.position : self.position + 1] = [("word", word[0]), ("word", word[1:])]

    def _word(self) -> Node:
        word = self.text
        name = next((f for f in sorted(FUNCTIONS, key=len, reverse=True) if word == f), None)
        if name is not None:
            self.position += 1
            return self._call(name)
        if word == "sqrt":
            self.position += 1
            return Node("root", (self.primary(), number(2)))
        if len(word) > 1:
            self._split_word()
        self.position += 1
        return self._named(word[0])

    def _named(self, name: str) -> Node:
        primes = ""
        while self.take("'"):
            primes += "'"
        if self.take("_"):
            return Node("symbol", (), f"{name}_{self._index()}{primes}")
        if name in ("e", "i") and not primes:
            return Node("constant", (), name)
        return Node("symbol", (), name + primes)

    def _index(self) -> str:
        """A subscript as it is written."""
        if not self.take("{"):
            text = self.text
            if self.kind == "word" and len(text) > 1:
                self._split_word()
                text = text[0]
            self.position += 1
            return text
        depth = 1
        parts: list[str] = []
        while self.kind != "end":
            depth += (self.text == "{") - (self.text == "}")
            if depth == 0:
                self.position += 1
                return "".join(parts)
            parts.append(self.text)
            self.position += 1
        raise NotMath("a subscript that never closes")

    def _command(self) -> Node:
        name = self.text[1:]
        self.position += 1
        if name in FUNCTIONS:
            return self._call(name)
        if name in ("pi", "infty"):
            return Node("constant", (), name)
        if name in _GREEK:
            return self._named("\\" + name)
        if name == "frac":
            return Node("div", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name in ("binom", "choose"):
            return Node("binom", (self._argument(), self._argument()))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.expect("\\r" + name[1:])
            return Node(name, (node,))
        if name in ("lvert", "vert", "mid"):
            node = self.sum()
            self.take("\\rvert", "\\vert", "\\mid")
            return Node("abs", (node,))
        if name in _ACCENTS:
            return self._named(f"\\{name}{{{self._letters()}}}")
        if name in _FONTS:
            return self._font(name)
        raise NotMath(f"unknown command \\{name}")

    def _argument(self) -> Node:
        """What a command takes: a group, a command with its own arguments, or one character."""
        if self.kind == "number" and len(self.text) > 1:
            digits = self.text
            self.tokens[self.position : self.position + 1] = [
                ("number", digits[0]),
                ("number", digits[1:]),
            ]
        return self.primary()

    def _root(self) -> Node:
        degree = number(2)
        if self.take("["):
            degree = self.sum()
            self.expect("]")
        return Node("root", (self._argument(), degree))

    def _letters(self) -> str:
        braced = self.take("{")
        letters = ""
        while self.kind in ("word", "number") and (braced or not letters):
            letters += self.text
            self.position += 1
        if braced:
            self.expect("}")
        if not letters:
            raise NotMath("an accent over nothing")
        return letters

    def _font(self, name: str) -> Node:
        """`\\mathrm{i}` is a letter, `\\text{cm}` is not maths."""
        letters = self._letters()
        if letters in FUNCTIONS:
            return self._call(letters)
        if len(letters) == 1 and letters.isalpha():
            return self._named("\\mathbb{" + letters + "}" if name == "mathbb" else letters)
        if letters.isdigit():
            return number(int(letters))
        raise NotMath(f"words {letters!r}")

    def _call(self, name: str) -> Node:
        base = None
        exponent: Node | None = None
        while self.text in ("_", "^") and self.kind == "symbol":
            if self.take("_"):
                base = self._argument()
            else:
                self.position += 1
                exponent = self.exponent()
        inverse = exponent == Node("neg", (number(1),))
        if inverse and name in _ARC:
            name, exponent = _ARC[name], None
        node = self._applied(name, base)
        return node if exponent is None else Node("pow", (node, exponent))

    def _applied(self, name: str, base: Node | None) -> Node:
        if name in ("max", "min", "gcd", "lcm"):
            return Node(name, self._several())
        argument = self._operand()
        if name == "log" and base is not None:
            return Node("div", (Node("ln", (argument,)), Node("ln", (base,))))
        if name == "exp":
            return Node("pow", (Node("constant", (), "e"), argument))
        return Node(name, (argument,))

    def _several(self) -> tuple[Node, ...]:
        self.expect("(")
        found = [self.sum()]
        while self.take(",", ";"):
            found.append(self.sum())
        self.expect(")")
        return tuple(found)

    @_nested
    def _operand(self) -> Node:
        """What a function without parentheses applies to: `\\sin 2x \\cos y` is sin(2x)·cos(y)."""
        if self.kind == "symbol" and self.text in ("(", "{", "["):
            return self.primary()
        if self.take("-"):
            return Node("neg", (self._operand(),))
        found = self.power()
        while self.starts_factor() and not self._at_function() and self.text not in ("(", "["):
            found = _times(found, self.power())
        while self.take("/"):
            found = Node("div", (found, self.power()))
        return found

    def _at_function(self) -> bool:
        name = self.text[1:] if self.kind == "command" else self.text
        return name in FUNCTIONS
