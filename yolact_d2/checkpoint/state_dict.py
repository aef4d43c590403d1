from torch import Tensor

StateDict = dict[str, Tensor]


def rename(state_dict: StateDict, names: dict[str, str]) -> StateDict:
    """Rename modules, given as {name: new name}; the others keep their names."""
    renamed = {}
    for key, value in state_dict.items():
        module, dot, leaf = key.rpartition(".")
        renamed[f"{names.get(module, module)}{dot}{leaf}"] = value
    return renamed
