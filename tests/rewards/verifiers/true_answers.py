"""True answers of every verifier, made by rules and without looking at the verifiers: what a careful
model may write. Each is a `GradeTask` that has to count."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from rewards.grader_corpus import real_golds

from megaladder.curate.make.countdown import CountdownSpec, countdown_rows
from megaladder.rewards.worker import GradeTask

SEED = 5
GOLDS = {
    "math": ["42", "\\frac{3}{4}", "2\\sqrt{3}", "x^2+1", "(1,2)", "\\pi", "-7", "1, -2", "[0,1)"],
    "gsm8k": ["18", "1,250", "0", "12.5", "-3"],
}
"""Used where the published sets are not on this machine."""
IN_A_BOX = (
    "Thus $\\boxed{%s}$.",
    "<think>Maybe \\boxed{0}? No.</think>\n\n**Answer**\n\\[\n\\boxed{%s}\n\\]",
    "Not 17 or 18 but\n$$\\boxed{ %s }$$",
    "First \\boxed{1}, then finally \\boxed{%s}",
    "\\fbox{%s}",
    "\\boxed{\\boxed{%s}}",
    "\\boxed{%s.}",
    "<answer>\n%s\n</answer>",
    "### Final answer\n\n$%s$",
    "**Final Answer:** $%s$",
    "Answer: $%s$<|im_end|>",
    "It is not obvious, but the answer is $%s$.",
)
OF_A_NUMBER = (
    "#### %s",
    "The answer is %s.",
    "The answer is: **%s**",
    "Answer: $%s",
    "Answer: %s dollars",
    "The answer is %s because 2 and 3 are not enough.",
    "1. We add.\n2. We are left with 3 eggs.\n\nSo she makes %s dollars every day.",
    "\\boxed{%s}",
    "\\boxed{\\$%s}",
    "\\boxed{%s \\text{ dollars}}",
    "\\boxed{x = %s}",
    "Not 17, not 19. Therefore, the total is %s.",
    "He has 5 * 4 = 20 and loses 2.\nThe result is %s",
    "<think>18? 19?</think>The final answer is $%s$.",
)
OF_A_CHOICE = (
    *("%s", "(%s)", "%s.", "**%s**", "\\boxed{%s}", "\\boxed{(%s)}", "\\boxed{\\text{%s}}"),
    *(
        "$\\boxed{\\textbf{(%s)}}$",
        "\\boxed{%s. 42}",
        "\\boxed{%s) an apple}",
        "\\boxed{%s: f(A) = 3}",
    ),
    *(
        "\\boxed{\\text{%s: both of the above}}",
        "<answer>%s</answer>",
        "<answer>(%s) Paris</answer>",
    ),
    *("The answer is %s.", "The answer is (%s).", "The correct answer is **%s**.", "Answer: %s"),
    *("Answer: (%s) as 3 > 2", "The answer is %s because the others are wrong.", "I choose %s."),
    *(
        "The correct option is %s.",
        "Option %s is correct.",
        "Final answer - %s",
        "Answer: \\(%s\\)",
    ),
    *("The answer is %s, since 2 is even.", "The answer is %s; the rest is false.", "Option: %s"),
    *("A fails and C fails, so the answer is %s", "We try all.\n\n(%s) Paris", "Done.\n%s. Paris"),
    *("Neither of the first two.\nAnswer: %s\n\nThanks!", "The best choice is (%s) both X and Y"),
    *("<think>The answer is Z.</think>\n\nThe answer is %s.", "The answer is option %s."),
    *("Answer choice: the answer is %s", "\\boxed{%s}\n\nI hope it is correct.", "answer: %s\n"),
)
OF_WORDS = ("%s", "%s.", "\\boxed{%s}", "<answer>%s</answer>", "Reasons.\n\n%s", "Answer: %s")
PROGRAMS = (
    "print({f}(int(input())))",
    "import sys\nprint({f}(int(sys.stdin.read())))",
    "import sys\nn = int(sys.stdin.readline())\nsys.stdout.write(str({f}(n)) + '\\n')",
    "import sys\nfor line in sys.stdin:\n    print({f}(int(line)))",
    "def main():\n    print({f}(int(input())))\n\n\nif __name__ == '__main__':\n    main()",
    "n = int(input())\nprint({f}(n))\nexit()",
    "print({f}(int(input())))\nquit(0)",
    "import sys\nprint({f}(int(input())))\nsys.exit()",
    "import os\nprint({f}(int(input())), flush=True)\nos._exit(0)",
    "import threading\nthreading.stack_size(1 << 26)\nthreading.Thread(target=lambda: print({f}(int("
    "input())))).start()",
    "import atexit, io, sys\nbuffer = io.StringIO()\nsys.stdout = buffer\natexit.register(lambda:"
    " sys.__stdout__.write(buffer.getvalue()))\nprint({f}(int(input())))",
    "import io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\nprint({f}(int("
    "input())))",
    "print({f}(int(open(0).read())))",
    "import sys\nsys.stdout.buffer.write(str({f}(int(sys.stdin.buffer.readline()))).encode())",
    "while True:\n    try:\n        n = int(input())\n    except EOFError:\n        break\n    print({f}(n))",
    "from functools import lru_cache\n@lru_cache(None)\ndef g(n): return {f}(n)\nprint(g(int(input())))",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    n: int\nprint({f}(A(int(input())).n))",
    "from typing import *\ndef g(x: List[int]) -> int: return {f}(x[0])\nprint(g([int(input())]))",
    "import sys\nprint('debug', file=sys.stderr)\nprint({f}(int(input())))",
    "from collections import *\nfrom itertools import *\nimport heapq, math\nprint({f}(int(input())))",
    "from decimal import Decimal\nprint({f}(Decimal(input())))",
    "print(f'{{{f}(int(input()))}}  ')\nprint()",
    "import sys\nsys.setrecursionlimit(10**6)\ndef g(n): return n if n == 0 else g(n - 1)\ng(5000)\n"
    "print({f}(int(input())))",
    "import numpy as np\nprint(int({f}(np.array([int(input())]))[0]))",
)


def golds(kind: str, count: int) -> list[str]:
    """Gold answers of a kind, from the published sets if they are here."""
    found = [gold for name, (of, some) in real_golds().items() if of == kind for gold in some]
    plain = [gold.rsplit("####", 1)[-1].strip() for gold in found] or GOLDS[kind]
    return random.Random(SEED).sample(plain, min(count, len(plain)))


def filled(kind: str, forms: tuple[str, ...], values: list[str]) -> Iterator[GradeTask]:
    for value in values:
        for form in forms:
            yield GradeTask(form, form.replace("%s", value), value, kind)


def countdown() -> Iterator[GradeTask]:
    for row in countdown_rows(CountdownSpec(), 60, seed=SEED):
        expression = row["messages"][1]["content"].rsplit("\\boxed{", 1)[1][:-1]
        latex = expression.replace("*", "\\times").replace("/", "\\div")
        spellings = (expression, f"{expression} = {row['target']}", latex, f"${expression}$")
        for text in (*spellings, expression.replace(" ", ""), f"\\left({latex}\\right)"):
            yield GradeTask(text, f"\\boxed{{{text}}}", row["gold"], "countdown", row)
        yield GradeTask("tag", f"<answer>{expression}</answer>", row["gold"], "countdown", row)


def code() -> Iterator[GradeTask]:
    """Programs in different styles; x → x², whatever form the tests have."""
    tests = [
        {"input": "3\n", "output": "9\n", "testtype": "stdin"},
        {"input": "-4", "output": "16"},
    ]
    for form in PROGRAMS:
        text = form.replace("{f}", "(lambda x: x * x)").replace("{{", "{").replace("}}", "}")
        yield GradeTask(form, f"So:\n```python\n{text}\n```", json.dumps(tests), "code")
    calls = [{"input": "3\n[1]", "output": "[3]", "testtype": "functional"}]
    for text in (
        "def f(a, xs): return [a * x for x in xs]",
        "class Solution:\n    def f(self, a: int, xs: list[int]) -> list[int]:\n        return [a] * 1",
        "from typing import List\nclass Solution:\n    def f(self, a, xs: 'List[int]'):\n        yield a",
        "def f(a, xs):\n    print('noise')\n    return tuple([a])",
    ):
        fenced = f"```py\n{text}\n```"
        yield GradeTask(text, fenced, json.dumps(calls), "code", {"func_name": "f"})


def regex() -> Iterator[GradeTask]:
    draw = random.Random(SEED)
    for _ in range(60):
        day = f"{draw.randint(1000, 2999)}-{draw.randint(10, 12)}-{draw.randint(10, 28)}"
        hexadecimal = f"#{draw.randrange(1 << 24):06x}"
        word = "".join(draw.choices("abcdefgh", k=draw.randint(1, 9)))
        for pattern, text in (
            (r"\d{4}-\d{2}-\d{2}", day),
            (r"^#[0-9a-f]{6}$", hexadecimal),
            (r"(?i)[A-H]+", word),
            (r"(yes|no), \w+", f"yes, {word}"),
            (r"(?s).*END", f"{word}\n{day}\nEND"),
        ):
            for form in ("%s", "<think>hm</think>\n%s\n", "%s<|im_end|>"):
                yield GradeTask(
                    pattern, form.replace("%s", text), "", "regex", {"pattern": pattern}
                )


def json_schema() -> Iterator[GradeTask]:
    draw = random.Random(SEED)
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
    properties = {"n": {"type": "integer"}, "x": {"type": "number"}, "tags": tags}
    schema = {"type": "object", "properties": properties, "required": ["n"]}
    for _ in range(60):
        value: dict[str, Any] = {"n": draw.randint(-99, 99)}
        if draw.random() < 0.5:
            value["x"] = draw.choice([0.5, -1, 1e30, 3])
        if draw.random() < 0.5:
            value["tags"] = draw.choices("ab", k=draw.randint(0, 3))
        for indent in (None, 2):
            text = json.dumps(value, indent=indent)
            for form in (
                "%s",
                "```json\n%s\n```",
                "<think>{</think>\n%s",
                "```\n%s\n```<|im_end|>",
            ):
                response = form.replace("%s", text)
                yield GradeTask(form, response, "", "json_schema", {"schema": schema})


def true_answers() -> dict[str, list[GradeTask]]:
    """Verifier → tasks whose responses are right."""
    from rewards.verifiers.followed import followed

    letters = list("ABCDEFGHIJ")
    words = ["Paris", "yes", "no", "New York", "42 km", "E = mc^2", "naïve", "x", "C++", "3:30 pm"]
    words += [f"{name} {i}" for i, name in enumerate(GOLDS["gsm8k"] * 8)]
    made: dict[str, Callable[[], Iterator[GradeTask]]] = {
        "math": lambda: filled("math", IN_A_BOX, golds("math", 150)),
        "gsm8k": lambda: filled("gsm8k", OF_A_NUMBER, golds("gsm8k", 150)),
        "choice": lambda: filled("choice", OF_A_CHOICE, letters),
        "exact": lambda: filled("exact", OF_WORDS, words),
        "countdown": countdown,
        "ifeval": followed,
        "regex": regex,
        "json_schema": json_schema,
        "code": code,
    }
    return {kind: list(make()) for kind, make in made.items()}
