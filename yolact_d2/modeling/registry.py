from typing import Any

from detectron2.utils.registry import Registry


def get_registered(registry: Registry, name: str, key: str) -> Any:
    """`registry.get(name)`, with an error that names the config `key` and the known names.

    Raises:
        ValueError: if the registry has no such name.
    """
    if name not in registry:
        known = ", ".join(sorted(known_name for known_name, _ in registry))
        raise ValueError(f"{key} is {name!r}, which is not one of: {known}")
    return registry.get(name)
