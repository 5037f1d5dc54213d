"""Networks as values: what an operator is, what it computes, and rewrites that change no answer."""
