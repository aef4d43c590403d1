from collections.abc import Iterable
from typing import Any


def get_registered(registry: Iterable[tuple[str, Any]], name: str, key: str) -> Any:
    """What has a name in a registry or in the items of a dict.

    Raises:
        ValueError: naming the config `key` and the known names, if nothing has the name.
    """
    known = dict(registry)
    if name not in known:
        names = ", ".join(sorted(known))
        raise ValueError(f"{key} is {name!r}, which is not one of: {names}")
    return known[name]
