"""What the best choice of columns for a buffer pool would gain, if all queries were known beforehand."""

from __future__ import annotations

import itertools


def unions(sets):
    """All unions of some sets, the empty one too."""
    found = {frozenset()}
    for columns in sets:
        found |= {union | columns for union in found}
    return found


def steps(wanted, bytes_of):
    """How the columns of one table are best added to one another, in steps of (gain, bytes) that gain less and less
    for each byte. wanted has the gain of each set of columns, which it takes whole; bytes_of that of each column."""

    def gain(union):
        return sum(gain for columns, gain in wanted.items() if columns <= union)

    points = sorted((sum(map(bytes_of.__getitem__, union)), gain(union)) for union in unions(wanted))
    # The upper hull: what lies below a line between two choices is worse than parts of the table by each.
    hull = []
    for size, best in points:
        while hull and best > hull[-1][1] and len(hull) > 1:
            (size_before, best_before), (size_last, best_last) = hull[-2:]
            if (best - best_last) * (size_last - size_before) < (best_last - best_before) * (size - size_last):
                break
            hull.pop()
        if not hull or best > hull[-1][1]:
            hull.append((size, best))
    return [(best - before, size - size_before) for (size_before, before), (size, best) in itertools.pairwise(hull)]


def most_gained(tables, room):
    """The most that any choice of columns gains in so many bytes: tables has of each the gains of queries by their
    columns, and the bytes of these, which are not 0. Parts of a table may be kept, as a pool does by segments; a part
    gains its part."""
    all_steps = [step for wanted, bytes_of in tables for step in steps(wanted, bytes_of)]
    total = 0.0
    for gain, size in sorted(all_steps, key=lambda step: step[0] / step[1], reverse=True):
        total += gain * min(1.0, room / size)
        room = max(0, room - size)
    return total
