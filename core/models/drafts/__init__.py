"""Models that draft: what guesses the next tokens of another model, cheaply, for that one to verify.

Two contracts (`contract`): `Heads` guess from the target's last hidden state alone (`medusa`, `mlp_speculator`); a
`Recurrent` drafter is a small decoder with a cache of its own (`eagle`, `eagle3`; a draft model is any `CausalLM`).
They compute scores; which token is drafted from them, with the target's own noise, is the executor's
(`core/execution/drafters`). All draft one line of tokens: trees of drafts are not built.

What a directory holds is read by `core/architectures/speculators`. Nothing here is dealt out to ranks: each holds all
of a drafter and computes the same.
"""
