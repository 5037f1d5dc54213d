"""FedMef (Huang et al., CVPR 2024): what is about to be pruned is emptied first, so that pruning costs little.

    begin   a random mask with Erdos-Renyi-kernel shares
    orders  every delta-R rounds until R_stop, from all layers at once: the a_t largest gradients of pruned positions
            in one batch, a_t = rate/2 * (1 + cos(pi t / (R_stop E))) * n; and in the same round budget-aware
            extrusion (the habit `extrusion`): the a_t smallest live weights of each layer are pressed towards zero
            by the surrogate loss L + lambda |theta_low|^2, at the rate max(lr, p(t) (2 sigmoid(|theta_low|) - 1) lr0)
    learn   (`moving.swapped`) prune the a_t smallest live weights; grow the a_t pruned ones with the largest
            averaged gradient, at zero

The other half of FedMef lies in the network: normalised weights and pruned activations, options of `[model]`.
Where it leaves the authors' public code on purpose: theta_low is drawn from the live weights (not from the pruned
ones, which are zero), lambda is applied, the norm is squared, and only rounds that adjust extrude. The weights are
chosen at the start of the round, by what the server sent: all clients press the same ones.
"""

from __future__ import annotations

from fedtiny_train.methods import Method, Orders, Setting
from fedtiny_train.methods.erk import begin
from fedtiny_train.methods.moving import is_due, swap_counts, swapped, times
from fedtiny_train.server import State


def schedule(setting: Setting) -> tuple[int, int]:
    """Return (delta-R, R_stop): as asked, or the paper's 10 and 300 of 500, scaled to the number of rounds."""
    return times(setting, 1 / 50, 3 / 5)


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask for a_t gradients of every layer, and for the extrusion, in the rounds that adjust."""
    every, until = schedule(setting)
    if not is_due(number, every, until):
        return Orders()
    options = setting.config.fedmef
    counts = swap_counts(setting, state, setting.maskable, number, until, options.fedmef_rate)
    numbers = {"scale_by_norm": float(setting.config.pruning.scale_by_norm)}
    if options.extrusion and counts:
        numbers |= {f"extrude/{name}": float(count) for name, count in counts.items()}
        numbers |= {"extrude_weight": options.extrusion_weight, "extrude_lr": setting.config.train.lr}
    return Orders(counts, numbers)


METHOD = Method(begin, orders, learn=swapped)
