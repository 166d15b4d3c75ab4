"""Steps of a recurrence as C text, for a host compiler or for NVRTC: no frame, no loop over tokens, no threads.

`stages` orders a step and its derived backward: matrix products, and nests of loops over units; `nest` prints what a
nest does per unit; `step` says what a step of a group reads and writes. Whoever has a frame says where arrays lie.
"""
