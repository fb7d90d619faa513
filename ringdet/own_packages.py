"""Whether the packages that Python finds are this project's: their names are not rare ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

_NAMES = (
    *("ctrl_c", "dataset", "detector", "efficientdet", "engine", "families", "keras_choice"),
    *("maskrcnn", "object_detection", "outside_data", "path_names"),
)
ROOT = Path(__file__).resolve().parents[1]
"""Where the packages and programs lie side by side: the repository, or where it is installed."""


def require_own_packages(names: Sequence[str] = _NAMES) -> None:
    """Looks where Python finds the packages that lie beside this one, without importing them.

    Raises:
      ImportError: one of them is another project's, or is not there; says where it was found.
    """
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # a module without one, put there by hand
            spec = None
        found = Path(spec.origin or next(iter(spec.submodule_search_locations))) if spec else None
        if found is None or ROOT not in found.resolve().parents:
            raise ImportError(
                f"Ringdet needs its own {name} in {ROOT}, but Python finds "
                f"{found or 'none'} first: put {ROOT} before it in PYTHONPATH, import ringdet "
                f"before the other project, or use an environment without it"
            )
