"""The .ftm format: weight encodings, memory plan, modelled cost."""
