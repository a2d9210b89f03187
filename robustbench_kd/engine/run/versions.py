"""Versions of the packages that can change a verdict."""

import importlib.metadata
import importlib.util

import torch


def autoattack_package() -> str:
    """Returns upstream `autoattack` where it is installed, `pyautoattack` otherwise."""
    spec = importlib.util.find_spec("autoattack")
    # The fork may stand in `sys.modules` under upstream's name, and a folder may have that name.
    is_upstream = spec is not None and spec.name == "autoattack" and bool(spec.origin)
    return "autoattack" if is_upstream else "pyautoattack"


def versions() -> dict[str, str]:
    """Returns the versions of this package, of torch and of the AutoAttack package, by name."""
    own = {
        "robustbench-kd": importlib.metadata.version("robustbench-kd"),
        "torch": torch.__version__,
    }
    return own | autoattack_version()


def autoattack_version() -> dict[str, str]:
    """Returns the AutoAttack package's version by its name, unknown for a copy on the path."""
    package = autoattack_package()
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {package: "unknown"}
