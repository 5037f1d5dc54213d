"""fedtiny's trainer: federated pruning as a simulation, from private data to a run folder."""

__version__ = "0.1.0"
