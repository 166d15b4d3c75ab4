"""Steps of a recurrence as CUDA kernels: one block of threads for some sequences and a head, all tokens inside.

Built on the stages and texts of `backends/clike`. `kernel` is the frame; `code` the definitions of a module.
"""
