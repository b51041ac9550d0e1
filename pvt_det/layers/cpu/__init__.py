"""Fast forms of the layers for a CPU: the same computation in chunks that stay in the cache, and by oneDNN.

Each layer of `pvt_det.layers` is written in its reference form, preceded by one line: `if use_fast_…: return fast_…`.
Here are those functions, one module for each layer. Compiled, exported and traced graphs never contain a fast form.
"""
