"""Tools: what a request offers, how a model writes calls of them, and how it is made to.

`tool.py` is what a request says, `parser.py` the contract of a format, one file each for the formats, `formats.py` the
table of them and the choice for a model, `structure.py` the constraint of required calls, as data.

Pure text machines (`server/text/machine.py`): no I/O, no protocol, no tensors. Wire types are the protocols' own.
"""
