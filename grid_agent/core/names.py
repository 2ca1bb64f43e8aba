"""Many node names in few characters: gpu1, gpu2, gpu3, gpu7 become gpu[1-3,7]. Pure."""

import re
from collections.abc import Iterable
from itertools import groupby

_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,8})\Z", re.DOTALL)  # gpu01 and gpu1 are not the same


def fold(names: Iterable[str]) -> str:
    """The names in one line, in order of first appearance; numbered ones of a kind together."""
    groups: dict[str, list[int] | None] = {}
    for name in dict.fromkeys(names):
        found = _NUMBERED.match(name)
        if found is None:
            groups[name] = None
            continue
        numbers = groups.setdefault(f"{found[1]}[", [])
        assert numbers is not None
        numbers.append(int(found[2]))
    return ", ".join(_one(key, numbers) for key, numbers in groups.items())


def _one(key: str, numbers: list[int] | None) -> str:
    if numbers is None:
        return key
    if len(numbers) == 1:
        return f"{key[:-1]}{numbers[0]}"
    runs = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return key + ",".join(str(e[0]) if len(e) == 1 else f"{e[0]}-{e[-1]}" for e in ends) + "]"
