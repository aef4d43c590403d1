from typing import Any

from detectron2.utils.registry import Registry


def lookup(registry: Registry, name: str, key: str) -> Any:
    """The object called `name` in `registry`.

    Raises:
        ValueError: if there is none; names the config `key` and the known names.
    """
    if name not in registry:
        known = ", ".join(sorted(known_name for known_name, _ in registry))
        raise ValueError(f"{key} is {name!r}, which is not one of: {known}")
    return registry.get(name)
