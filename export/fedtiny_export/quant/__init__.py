"""From a float network to an int8 one: steps, rounding, and what that costs in accuracy."""
