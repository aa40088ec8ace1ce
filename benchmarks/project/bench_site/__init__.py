"""A typical Django project; `peers` joins it only where a peer is measured."""
