r"""Units that may be left out of an answer, and how they convert.

A word that is not in this table is part of the answer: odd and even, profit and loss, million,
a.m., names of months never are here.

A unit is its dimensions and a factor to the base unit. Kinds of things that are counted (people,
apples) have no dimension and convert to nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from flint import fmpq

# word → (dimension, how many base units one is). Angles in degrees, money in cents.
_MEASURES: dict[str, tuple[str, fmpq]] = {}


def _add(dimension: str, factors: dict[str, str | int]) -> None:
    for words, factor in factors.items():
        value = fmpq(*map(int, str(factor).split("/")))
        for word in words.split():
            _MEASURES[word] = (dimension, value)


_add(
    "length",
    {
        "mm millimeter millimeters millimetre millimetres": "1/1000",
        "cm centimeter centimeters centimetre centimetres": "1/100",
        "dm decimeter decimeters": "1/10",
        "m meter meters metre metres": 1,
        "km kilometer kilometers kilometre kilometres": 1000,
        "in inch inches": "254/10000",
        "ft foot feet": "3048/10000",
        "yd yard yards": "9144/10000",
        "mi mile miles": "1609344/1000",
    },
)
_add("area", {"acre acres": 1, "hectare hectares ha": "100000000/40468564"})
_add(
    "volume",
    {
        "ml milliliter milliliters millilitre millilitres": "1/1000",
        "l liter liters litre litres": 1,
        "gallon gallons gal": "3785411784/1000000000",
        "quart quarts": "946352946/1000000000",
        "pint pints": "473176473/1000000000",
        "cup cups": "236588237/1000000000",
    },
)
_add(
    "mass",
    {
        "mg milligram milligrams": "1/1000",
        "g gram grams": 1,
        "kg kilogram kilograms": 1000,
        "ton tons tonne tonnes": 1000000,
        "oz ounce ounces": "28349523125/1000000000",
        "lb lbs pound pounds": "45359237/100000",
    },
)
_add(
    "time",
    {
        "ms millisecond milliseconds": "1/1000",
        "s sec secs second seconds": 1,
        "min mins minute minutes": 60,
        "h hr hrs hour hours": 3600,
        "day days": 86400,
        "week weeks": 604800,
    },
)
_add("year", {"year years yr yrs": 1})
_add("angle", {"degree degrees deg": 1})
_add("radian", {"radian radians rad": 1})
_add("money", {"cent cents": 1, "dollar dollars usd": 100})
_add("euro", {"euro euros eur": 1})
_add("rupee", {"rupee rupees rs": 1})
_add("celsius", {"celsius °c": 1})
_add("fahrenheit", {"fahrenheit °f": 1})
for _base_name, _spellings in {
    "newton": "n newton newtons",
    "joule": "j joule joules",
    "watt": "w watt watts",
    "kilowatt": "kw kilowatt kilowatts",
    "volt": "v volt volts",
    "ampere": "ampere amperes amp amps",
    "ohm": "ohm ohms",
    "hertz": "hz hertz",
    "kilohertz": "khz",
    "pascal": "pa pascal pascals",
    "kelvin": "k kelvin kelvins",
    "mole": "mol mole moles",
    "coulomb": "coulomb coulombs",
    "gigabyte": "gb",
    "megabyte": "mb",
}.items():
    _add(_base_name, {_spellings: 1})

# what is counted; "units" measures nothing either
_COUNTED_WORDS = """unit units item items thing things people person persons student students child
children kid
    kids boy boys girl girls man men woman women adult adults teacher teachers worker workers player
    players team teams friend friends member members customer customers guest guests passenger
    passengers apple apples orange oranges pear pears banana bananas egg eggs cookie cookies cake
    cakes pie pies pizza pizzas slice slices candy candies sandwich sandwiches loaf loaves bottle
    bottles can cans bag bags box boxes basket baskets bucket buckets jar jars pack packs package
    packages pile piles row rows column columns page pages book books pencil pencils pen pens crayon
    crayons notebook notebooks sheet sheets card cards sticker stickers stamp stamps marble marbles
    ball balls toy toys doll dolls balloon balloons flower flowers rose roses plant plants tree
    trees leaf leaves seed seeds animal animals dog dogs cat cats puppy puppies kitten kittens cow
    cows pig pigs horse horses sheep chicken chickens duck ducks bird birds fish rabbit rabbits bee
    bees ant ants car cars truck trucks bus buses train trains boat boats bike bikes bicycle
    bicycles wheel wheels room rooms floor floors house houses chair chairs table tables seat seats
    desk desks door doors window windows ticket tickets point points goal goals game games match
    matches vote votes step steps lap laps trip trips time times way ways method methods solution
    solutions number numbers digit digits integer integers term terms element elements factor
    factors root roots value values pair pairs triple triples group groups set sets subset subsets
    arrangement arrangements permutation permutations combination combinations outcome outcomes path
    paths route routes triangle triangles square squares rectangle rectangles circle circles side
    sides edge edges vertex vertices face faces corner corners diagonal diagonals line lines region
    regions cube cubes block blocks tile tiles coin coins penny pennies nickel nickels dime dimes
    quarter quarters bill bills piece pieces part parts serving servings meal meals shirt shirts
    shoe shoes hat hats sock socks dress dresses button buttons battery batteries brick bricks stone
    stones rock rocks shell shells message messages question questions problem problems word words
    letter letters song songs movie movies photo photos picture pictures problem calorie calories
    vote handshake handshakes bacteria cell cells atom atoms molecule molecules star stars"""
_COUNTED = frozenset(_COUNTED_WORDS.split())
_SPEEDS = {"mph": (("mile", 1), ("hour", -1)), "kph": (("km", 1), ("hour", -1))}
_PREFIX_POWER = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# single letters are variables unless a text command says that they are words
_TOKEN = re.compile(r"([A-Za-z°]+)\.?\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?|(/|\bper\b)|([·.*\s-]+)")


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimensions`: sorted (name, exponent) pairs, empty for what is counted.

    `factor`: base units in one; `counted`: the words of what is counted."""

    dimensions: tuple[tuple[str, int], ...]
    factor: fmpq
    counted: str = ""


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """The unit that a text names; None if any word of it is not known.

    >>> read_unit("km/h").dimensions, read_unit("odd"), read_unit("red apples")
    ((('length', 1), ('time', -1)), None, None)
    """
    tokens = _words(text)
    if not tokens:
        return None
    counted = [word for word, _ in tokens if word in _COUNTED]
    dimensions: dict[str, int] = {}
    factor = fmpq(1)
    for word, exponent in tokens:
        if word in _COUNTED:
            continue
        dimension, value = _MEASURES[word]
        dimensions[dimension] = dimensions.get(dimension, 0) + exponent
        factor *= value**exponent
    kept = tuple(sorted((name, power) for name, power in dimensions.items() if power))
    return Unit(kept, factor, " ".join(word.rstrip("s") for word in counted))


def _words(text: str) -> list[tuple[str, int]] | None:
    """(word, exponent) in order; None for an unknown word or mark."""
    found: list[tuple[str, int]] = []
    position, sign, power = 0, 1, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.end() == position:
            return None
        position = match.end()
        word, exponent, slash, _ = match.groups()
        if slash or (word and word.lower() == "per"):
            sign = -1
            continue
        if not word:
            continue
        word = word.lower()
        if word in _PREFIX_POWER:
            power = _PREFIX_POWER[word]
            continue
        if word in ("of", "the", "each", "every", "an", "a") and found:
            continue
        if word in _SPEEDS:
            found += _SPEEDS[word]
            continue
        if word not in _COUNTED and word not in _MEASURES:
            return None
        found.append((word, sign * power * int(exponent or 1)))
        sign, power = 1, 1
    return found


SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
