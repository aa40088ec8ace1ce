"""Examine everything that machinequeue stands on, and say of each what is wrong and what to do about it.

`examine()` in `rounds` is the way in. An examination is a function of `Facts` that yields findings; it knows nothing
of the others, so that one service that is down, or hangs, hides nothing else. What health asks too is asked of it.
Nothing
is launched or mended; what is written to see whether it can be (a key in Redis, a file among the backups) is taken away
again; and no value of a secret or of an environment variable is in what it says.
"""
