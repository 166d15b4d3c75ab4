"""How fast a compiled cell is: what `rnnc bench` times, counts and reports. `docs/bench.md` says how.

Goals: the same inputs and parameters for all, numbers checked before they are timed, a share of what the device itself
reaches in the same run. Non-goals: tuning; comparing devices.
"""
