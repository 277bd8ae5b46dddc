"""Invented text: prose and code of a fictional harbour-planning project, as varied as real text."""

from __future__ import annotations

from random import Random
from uuid import UUID

CHARS_PER_TOKEN = 3.1
"""Characters of our text per cl100k_base token, measured on our code; only used to aim at a size."""


def _listed(words: str) -> tuple[str, ...]:
    """A word list, written as text to keep it short."""
    return tuple(words.split())


NOUNS = _listed("""
    berth anchor cargo tide pilot manifest quay crane draught buoy ledger harbour signal vessel
    window slot route mooring permit tariff customs channel beacon convoy ballast weather roster
    shift dredge depth pontoon barge container hatch seal invoice quota segment cursor bucket
    payload digest lock lease retry budget queue worker
""")
VERBS = _listed("""
    assign release merge split reserve forecast reconcile validate publish collect defer rank trim
    refresh expire charge settle dispatch resolve flatten project compare resume restore register
    audit sample
""")
ADJECTIVES = _listed("""
    pending stale northern shallow idle partial nightly shared overdue cached remote sealed narrow
    double empty
""")
UNUSUAL_TEXTS = (
    "Bitte prüfe auch die Größe der Liegeplätze: Überlänge, Öltanker, ß und «Anführungen».",
    "港の予定表を確認してください。満潮は06:42、干潮は13:05です。",
    "Ελέγξτε τα ρεύματα 🌊⚓ και το Ω ≈ 3.2 μ/δ; naïve façade — déjà vu…",
)
MARKER_TEXT = "The log ends with <|endoftext|> & then <tag>&amp;</tag>; is that a marker or just text?"
_SYLLABLES = _listed("""
    ab ac ado af al an ar as bar bel bi bo bra cal ce chi co cor cu da de di dor du el en er es fa
    fe fi for ga ge gla go gre ha he ho hy il in ir is ja jo ka ki kor la lem li lo lu ma me mi mo
    mul na ne no nu ob on or os pa pe phi plu po pra qua ra re ri ro sa se shi sol sta su ta te tha
    ti to tri tu ul um ur va ve vi vo wa wi xe yo za
""")
_FOLDERS = (
    "berths",
    "tides",
    "cargo",
    "billing",
    "radio",
    "planning",
    "adapters/ais",
    "reports",
    "tests/unit",
)
_CODE_LINES = (
    "def {verb}_{noun}({a}: {type}, *, {b}: int = {n}) -> {type}:",
    "    {a} = self._{noun}s.get({b!r}, {n})",
    "    if {a}.{noun} is None or {a}.{verb}_at > {n}:",
    '        raise {Noun}Error(f"{{{a}.name}}: {adj} {noun} ({n} of {m})")',
    "    return [{a}.{verb}() for {a} in {b} if not {a}.is_{adj}]",
    '        {a}["{noun}_{b}"] += round({a}.{noun} * {f}, {d})',
    "class {Noun}{Verb}er(Base{Noun}):",
    '    """{Verb} the {adj} {noun} before the {noun2} changes."""',
    "",
    "    # {Verb} first: the {noun} may be {adj} for up to {n} ms (see #{m}).",
    "    for {a}_{d}, {b} in enumerate(sorted({noun}s, key=lambda x: x.{noun}_id)):",
    '        logger.debug("%s %s/%d", {a}, "{adj}-{noun}", 0x{m:04x})',
    "        assert {verb}({a}, {b}) == ({n}, {f}), {a}",
    "    with self.lock({noun!r}, timeout={f}) as {a}:",
    '        yield {Noun}({a}={n}, {b}="{m:06d}", {noun}=[{n}, {d}, {m}])',
    '@register("{noun}.{verb}", version=({d}, {n}))',
    "    try:",
    "        {a} = await self.{verb}_{noun}({b}, limit={n})",
    "    except ({Noun}Error, TimeoutError) as error:",
    '        self.metrics["{noun}_{verb}_total"].labels(kind="{adj}").inc({f})',
    "{NOUN}_{ADJ}_MS = {m}_{n:03d}",
    "import {noun}_{verb} as {a}; from harbour.{noun} import {Noun}, {verb}_{noun2}",
    "        self.{own}: dict[{type}, {Own}] = {{}}  # filled by `{verb}_{own2}`",
    '    {own} = {Own}({own2}={a}.{noun}, {b}=not {own3}.is_{adj}, digest="{hex}")',
    '        "{own}-{own2}": ("{date}", {f}, -{n}, None, True),',
    '    assert {own}.{verb}({own2}) >= {f} * {own3}[{d}:{n}], f"{own} -> {{{own2}!r}}"',
    "\tif (({own} & 0x{hex}) >> {d}) != {own2}->{noun}_{d} || !{own3}[{n}]) {{ return -{d}; }}",
    "    const {own} = await {own2}.{verb}{Noun}(`/{noun}/${{{own3}.id}}?{b}={n}`);",
    "        # TODO({own}): {own2} and {own3} differ since {date}; see https://harbour.test/{noun}/{m}",
    "    <{noun} id=\"{own}\" {b}='{hex}'>{Own} &amp; {Own2}</{noun}>",
    '      - {{name: {own}-{own2}, image: "harbour/{own3}:{d}.{n}", ports: [{n}, {m}]}}',
    "{date}T0{d}:17:42.{n:03d}Z WARN [{own}.{own2}] {adj} {noun} {hex} took {f} ms",
    "    SELECT {own}_id, COUNT(*) FROM {noun}_{own2} WHERE {own3} < {n} AND {b} LIKE '%{adj}%'",
)
_SENTENCES = (
    "{Verb} the {adj} {noun} in `{noun2}_{verb}.py` before the {noun3} is read.",
    "The {noun} keeps {n} {adj} entries, so `{verb}_{noun2}()` returns early.",
    "I would {verb} {noun2} {m} once, then {verb2} what is left of the {noun3}.",
    "It fails when a {adj} {noun} arrives after {n} seconds without its {noun2}.",
    "`{Noun}.{verb}` and `{Noun2}.{verb2}` share the {noun3}; only the second is tested.",
    "Why does the {noun} stay {adj} after {verb2} is called with {n}?",
    "Since {date} the test `{own}_{verb}` reports {f} instead of {n} for {Own2}.",
    "There are two callers: {own}.{verb2}() in the {noun} adapter, and `{Own2}` itself.",
    "Please {verb} every {adj} {noun2}, but leave {own3} and the {noun3} (#{m}) as they are.",
    "{Own} doesn't {verb}; it merely keeps a {adj} copy, which the {noun2} then {verb2}s.",
    "First I'll {verb} the {noun}; if that isn't enough, {own2} has to {verb2} its {noun3} too.",
)


def seeded(*path: object) -> Random:
    """The random stream that belongs to a seed and whatever the stream is for; the same in every Python."""
    return Random("/".join(map(str, path)))  # noqa: S311 - reproducible, not secret


def uuid_of(rng: Random) -> str:
    """A version-4 UUID drawn from `rng`."""
    return str(UUID(int=rng.getrandbits(128), version=4))


def base62_of(rng: Random, length: int) -> str:
    """`length` letters and digits, as API ids have them."""
    return "".join(rng.choices("0123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", k=length))


def path_of(rng: Random) -> str:
    """The path of a source file of the fictional code base."""
    return f"/srv/harbour/{rng.choice(_FOLDERS)}/{rng.choice(NOUNS)}_{rng.choice(VERBS)}.py"


def invented(rng: Random) -> str:
    """An identifier of made-up syllables: the long tail that a real code base's names have."""
    parts = ("".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) for _ in range(rng.choice((1, 1, 2))))
    return "_".join(parts)


def prose(rng: Random, tokens: int) -> str:
    """Sentences about the code base, about `tokens` long and at least one."""
    return _fill(rng, _SENTENCES, " ", tokens)


def code(rng: Random, tokens: int) -> str:
    """Source lines, about `tokens` long and at least one."""
    return _fill(rng, _CODE_LINES, "\n", tokens)


def numbered(source: str, first: int = 1) -> str:
    """`source` with line numbers in front, as a file-reading tool prints it."""
    return "\n".join(f"{number}\t{line}" for number, line in enumerate(source.split("\n"), first))


def _fill(rng: Random, templates: tuple[str, ...], separator: str, tokens: int) -> str:
    """Filled templates joined until about `tokens` are reached."""
    parts: list[str] = []
    missing = tokens * CHARS_PER_TOKEN
    while missing > 0 or not parts:
        part = rng.choice(templates).format_map(_words(rng))
        parts.append(part)
        missing -= len(part) + len(separator)
    return separator.join(parts)


def _words(rng: Random) -> dict[str, str | int | float]:
    """One value for every placeholder of the templates."""
    noun, noun2, noun3, a, b = rng.choices(NOUNS, k=5)
    verb, verb2 = rng.choices(VERBS, k=2)
    adjective = rng.choice(ADJECTIVES)
    number = rng.randrange(1, 100_000)
    own, own2, own3 = (invented(rng) for _ in range(3))
    return {
        "own": own, "own2": own2, "own3": own3, "Own": own.title().replace("_", ""),
        "Own2": own2.title().replace("_", ""), "hex": f"{rng.getrandbits(32):08x}",
        "date": f"2025-{number % 12 + 1:02d}-{number % 28 + 1:02d}",
        "noun": noun, "noun2": noun2, "noun3": noun3, "Noun": noun.title(), "Noun2": noun2.title(),
        "NOUN": noun.upper(), "verb": verb, "verb2": verb2, "Verb": verb.title(), "adj": adjective,
        "ADJ": adjective.upper(), "type": rng.choice(("str", "dict[str, int]", f"{noun2.title()}", "bytes")),
        "a": f"{a}_{verb2}" if number % 3 else a, "b": b, "n": number % 997, "m": number,
        "d": number % 10, "f": number % 1009 / 8,
    }  # fmt: skip
