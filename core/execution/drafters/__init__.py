"""Drafters at work: what runs behind the target's step and guesses the tokens that come after it.

`heads` guess from the step's last hidden states; `cached` runs a small decoder beside the target, either over the same
tokens and the target's states (EAGLE) or over the tokens alone (a draft model), and then a token at a time. `places`
says where its keys and values go, `coverage` which of them are there already, `choosing` how a token is drafted: with
the noise that the target will choose with, so that both agree as often as their scores allow. `loading` makes them.

Everything is enqueued behind the target's own work, from places that only the device knows (how many of the last drafts
were right), and comes to the host with the step's results. The modules are in `core/models/drafts`.
"""
