"""RigL (Evci et al., ICML 2020) among federated clients: a random sparse network whose weights move by gradient.

    begin   a random mask with Erdos-Renyi-kernel shares
    orders  every delta-R rounds until R_stop, 75 % of all rounds as in RigL's paper, from all layers at once:
            the a_t largest gradients of pruned positions, a_t = rate/2 * (1 + cos(pi t / (R_stop E))) * n
    learn   (`moving.swapped`) prune the a_t smallest live weights; grow the a_t pruned ones with the largest
            averaged gradient, at zero

RigL knows one machine and 100 steps between updates; here delta-R is a thirtieth of the rounds, and the gradient
is the |D_k|-weighted mean of the clients' K largest, each of one batch. With ERK the paper prunes the first
layer too: `first_dense` off.
"""

from __future__ import annotations

from fedtiny_train.methods import Method, Orders, Setting
from fedtiny_train.methods.erk import begin
from fedtiny_train.methods.moving import is_due, swap_counts, swapped, times
from fedtiny_train.server import State


def orders(setting: Setting, state: State, number: int) -> Orders:
    """Ask for a_t gradients of every layer in the rounds that adjust."""
    every, until = times(setting, 1 / 30, 3 / 4)
    if not is_due(number, every, until):
        return Orders()
    counts = swap_counts(setting, state, setting.maskable, number, until)
    return Orders(counts, {"scale_by_norm": float(setting.config.pruning.scale_by_norm)})


METHOD = Method(begin, orders, learn=swapped)
