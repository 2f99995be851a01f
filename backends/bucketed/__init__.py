"""What backends share whose machines compile a program for each shape: a leaf, not a backend.

`ladders` makes the buckets, `cache` and `steps` put the paged cache and a step into static shapes, `attention` composes
attention of ops that every compiler has, with a seam for a kernel of the machine's own; `sampling` is what is left of
log-probabilities where nothing may be empty; `bus` finds accelerators without starting a runtime. No vendor's software
is named here.
"""
