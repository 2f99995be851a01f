"""Thirty-two varied prompts: languages, code, numbers, lists, one word, long, odd whitespace, emoji, repetition."""

from __future__ import annotations

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a land far away,",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
    "Water boils at a temperature of",
    "Hello",
    "La tour Eiffel est située à",
    "Der schnelle braune Fuchs",
    "import numpy as np\n\narray = np.zeros((3, 4))\nprint(",
    "SELECT name, age FROM people WHERE",
    "Q: What is the largest planet in the solar system?\nA:",
    "To make a cup of tea, first",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    "<html>\n<body>\n<h1>",
    '{"name": "Ada", "born": 1815, "field":',
    "   leading spaces and\ttabs\n\n\nand blank lines",
    "🙂 Emoji are",
    "日本の首都は",
    "In 1969, Neil Armstrong",
    "Roses are red,\nViolets are blue,",
    "A" * 60,
    "Photosynthesis is the process by which plants",
    "Dear Sir or Madam,\n\nI am writing to",
    "The derivative of x squared with respect to x is",
    "Breaking news: scientists have discovered",
    "| name | age |\n|---|---|\n| Alice | 30 |\n| Bob |",
    "He said, “It was the best of times,",
    "Step 1: Preheat the oven.\nStep 2:",
    "What is 17 multiplied by 3? Let us think step by step.",
    "A very long sentence that goes on and on, through one clause and another, past commas and semicolons; it pauses, "
    "it resumes, it remembers where it began, and it wonders, as long sentences do, whether anybody will still be "
    "reading when it finally comes to its end, which is not yet, because there is always one more thing to say about "
    "the weather, the sea, the ships in the harbour, the lamp in the window, and the old man who",
    "#include <stdio.h>\n\nint main(void) {",
    "x",
)
