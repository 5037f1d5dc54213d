"""PruneFL (Jiang et al., TNNLS 2022) as FedTiny's authors compare with it: dense gradients of all batches.

    begin   the largest pre-trained weights of each layer, one density for all
    orders  every delta-R rounds until R_stop: the mean squared gradient of every pruned position over all batches
            of the round, from every client: dense backward passes and a dense message
    learn   of each layer but a first convolution, shortcuts and the classifier: prune the a_t smallest live
            weights and grow the a_t pruned ones with the largest mean square over the clients, weighted by
            |D_k|; a_t as in FedTiny

It is not the official PruneFL, whose server prunes on its own first and then chooses how many weights live, by
squared gradient for each layer's measured time; here the density is given, as in every comparison at one density.
The layers that are left out keep their first mask; `adjust_all` moves the weights of every layer that is pruned.
"""

from __future__ import annotations

from fedtiny_train.masks import swap
from fedtiny_train.methods import Method, Orders, Outcome, Setting
from fedtiny_train.methods.magnitude import begin
from fedtiny_train.methods.moving import is_due, swap_counts, times
from fedtiny_train.server import State


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (delta-R, R_stop): as asked, or 10 and 100 of 300 rounds as for FedTiny."""
    return times(setting, 1 / 30, 1 / 3)


def adjusted(setting: Setting, state: State) -> list[str]:
    """Return the layers whose weights move."""
    if setting.config.prunefl.adjust_all:
        return setting.maskable
    first = next(iter(setting.sizes))
    ends = {setting.classifier, first if state.tensors[first].ndim == 4 else ""}
    return [name for name in setting.maskable if name not in ends and "shortcut" not in name]


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask for the mean squares of all pruned positions in the rounds that adjust."""
    every, until = schedule(setting)
    if not is_due(number, every, until):
        return Orders()
    names = swap_counts(setting, state, adjusted(setting, state), number, until)
    pruned = {name: int((~state.masks[name]).sum()) for name in names}
    return Orders(pruned, {"squares": 1.0, "scale_by_norm": float(setting.config.pruning.scale_by_norm)})


def learn(setting: Setting, outcome: Outcome) -> State:
    """Swap a_t weights of each layer that sent its squares."""
    state = outcome.state
    counts = swap_counts(setting, state, list(outcome.gradients), outcome.number, schedule(setting)[1])
    masks = {
        name: swap(state.tensors[name], state.masks[name], outcome.gradients[name], count, setting.row_floor(name))
        for name, count in counts.items()
    }
    return state.with_masks(state.masks | masks)


METHOD = Method(begin, orders, learn)
