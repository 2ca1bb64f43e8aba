"""A self-healing agent for Ray clusters on people's own machines.

Other code may own the name `config` too, and stand earlier on the path. The package that belongs to this one
is the folder beside it, so that one is taken, whatever the path says.
"""

import importlib.util
import sys
from pathlib import Path


def _take_sibling(name: str) -> None:
    """Import the package `name` from the folder beside this package."""
    folder = Path(__file__).resolve().parent.parent / name
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__ or "").parent == folder:
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        message = f"grid-agent is not installed completely: {folder} is missing"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_take_sibling("config")
