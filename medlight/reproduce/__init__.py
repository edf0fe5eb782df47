"""Published results run again: what was expected, what came out, and whether the one is the other."""
