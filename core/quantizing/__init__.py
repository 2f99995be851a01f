"""Making quantized checkpoints: `mainspring quantize`, a layer at a time.

`run` goes through the model's blocks: `calibration` runs one over the calibration text and sums what its linear layers
are fed; `scaling` (AWQ) moves scale from activations to weights, `rounding` (RTN, GPTQ, FP8) chooses the codes;
`writing` puts them in a layout that other servers read, too. Of the model, one block is in memory.

Legend: T tokens, K input features, N output features, G groups of a row.
"""
