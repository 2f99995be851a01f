"""Speculation: several tokens of a sequence in one step, when they can be guessed. No torch here.

A sequence's guesses (a `Draft`) are computed behind its last token, and a token is chosen after each by the very path
that plain decoding takes. Noise is a hash of (seed, position, token id) and everything else that decides (penalties,
biases, processors, the grammar) depends on the tokens before, so the choice behind right guesses *is* plain decoding's.
A guess is right while it equals the choice. So an answer does not change by a token, at any temperature, whoever
guesses and however well: exact by construction, where rejection sampling (Leviathan et al. 2023, Chen et al. 2023)
keeps the distribution alone. For guesses that are one token the rates of acceptance are the same; a drafter that draws
with the target's noise agrees as often as two coupled draws can (Daliri et al. 2024), and nobody keeps its
distribution.

`copying` guesses that a sequence goes on as it did before, on the host. What guesses on the device (draft models,
heads) is `core/execution/drafters`; its guesses come with a step's result (`offers`) and are verified likewise. Either
is a sequence's `outlook`: how well it could be guessed so far, which plain decoding tells for nothing. `gate` says
whether drafting pays on this machine, under this load; `speculation` is what the planner asks of all of them.
"""
