"""Regular expressions that answers must match as a whole. Python reads them alike, which is who checks."""

from __future__ import annotations

from collections.abc import Mapping

CLASSES = [
    "[a-z]{3}", "[A-Z]{2}[0-9]{2}", "[0-9]{1,5}", r"\d{3}", r"\w{4}", "[^a-z]{2}", "[a-zA-Z0-9_]{5,9}", r"[\-+*/]", "[.]{3}", r"\.\.\.",
    "[aeiou]{2,4}", "[^\\n]{1,12}", "[ -~]{4,8}", "[a-c-]{3}", r"[\]\[]{2}", r"[\\/]{2}", "[é-ü]{2}", "[日本語]{1,3}", "[0-9a-f]{8}", ".{5}",
]  # fmt: skip
REPEATS = [
    "a{3}", "a{2,4}b", "(ab){2}", "(ab|c){2,4}", "a?b?c", "x+y", "(xy)*z", "a{0}b", "(a{1,2}){2}", "é+x?", "(0|1){8}", "(na){2,6} batman",
    "(very ){0,3}good", "[0-9]+px", "a{1,3}b{1,3}c{1,3}", "(a|b)*c", "((a|b){2}c){1,2}", "(yes ?){1,3}", "-{3,10}", "[ab]{20}",
]  # fmt: skip
ALTERNATIVES = [
    "(yes|no|maybe)", "red|green|blue", "(a|ab|abc)d", "(Mon|Tues|Wednes|Thurs|Fri)day", "cat(s|)", "(0|[1-9][0-9]{0,2})", "true|false|null",
    "(Mr|Mrs|Ms)\\. [A-Z][a-z]{2,8}", "(left|right) (up|down)", "a(b|c(d|e(f|g)))", "(one|two|three)(, (one|two|three)){1,2}",
    "(GET|POST|PUT) /[a-z]{1,10}", "(January|February|March) [12][0-9]", "I (do|do not) (agree|know)", "(x|y|z)=(1|2|3)", "[+-]?(inf|nan|[0-9])",
    "(https?|ftp)://[a-z]{2,8}\\.(com|org)", "A|B|C|D|E", "(ein|zwei|drei)", "(tick|tock)(-(tick|tock)){3}",
]  # fmt: skip
SHAPES = [
    r"\d{4}-\d{2}-\d{2}", "[0-9]{3}-[0-9]{4}", "([01][0-9]|2[0-3]):[0-5][0-9]", "#[0-9a-fA-F]{6}", r"\$[0-9]{1,4}\.[0-9]{2}",
    r"[a-z]{1,8}@[a-z]{1,8}\.(com|net)", r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}", "[A-Z][a-z]{1,8} [A-Z][a-z]{1,8}", r"v\d+\.\d+\.\d+",
    r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}", r"-?\d{1,3}(\.\d{1,2})?",
    r"\d{1,2}/\d{1,2}/\d{4}", "[A-Z]{3}-[0-9]{3,4}", r"\"[a-z ]{1,12}\"", r"\{\"a\": (true|false)\}", "<b>[a-z]{1,6}</b>", r"\[[0-9](, [0-9]){2}\]",
    r"[a-z]+(_[a-z]+){1,2}", "(\\| [a-z]{1,4} ){2}\\|",
]  # fmt: skip
SENTENCES = [
    "The answer is (yes|no)\\.", "I am [0-9]{1,2} years old\\.", "Paris is the capital of [A-Z][a-z]{3,9}\\.", "([A-Z][a-z]{1,9} ){2,4}end",
    "1\\. [a-z ]{3,20}\n2\\. [a-z ]{3,20}", "[A-Z][a-z ,]{5,30}[.!?]", "Dear [A-Z][a-z]{2,8},\nHello", "Q: [a-z ]{3,15}\\?\nA: (yes|no)",
    "(roses|violets) are (red|blue)", "x = [0-9]+; y = [0-9]+", "[a-z]{1,10}( [a-z]{1,10}){3}", "\t[a-z]{3}", "\\s{1,3}[a-z]", "[a-z]\n{2}[a-z]",
    "😀{1,3}", "naïve|café|über", "[a-z]+ing", "un[a-z]{2,8}ed", "say \"[a-z]{2,6}\" twice", "(ha){2,5}!",
]  # fmt: skip

KINDS: Mapping[str, list[str]] = {
    "classes": CLASSES, "repeats": REPEATS, "alternatives": ALTERNATIVES, "shapes": SHAPES, "sentences": SENTENCES,
}  # fmt: skip
