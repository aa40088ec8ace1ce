"""Decide how many machines each (queue, spec key) needs, write down why runs wait, and launch."""
