"""Lists what lock files ask for and this environment does not have.

Prints one requirement per line, in the order of the files; nothing when all is in place. A package
counts as in place when its version is the pinned one and every file that its record names is there
with the recorded size: an installation that was killed half-way fails the second test. Markers are
evaluated for the running Python.

Runs before the locked packages are there: it uses the standard library and what pip carries.
"""

import importlib.metadata
import sys

from pip._vendor.packaging.requirements import Requirement


def is_in_place(requirement: Requirement) -> bool:
    """Tells whether the pinned version is installed with all its files."""
    try:
        distribution = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if distribution.metadata["Version"] is None or not distribution.files:
        return False
    if not requirement.specifier.contains(distribution.version, prereleases=True):
        return False
    for file in distribution.files:
        # Python rewrites the compiled files that some packages ship.
        if file.size is None or file.suffix == ".pyc":
            continue
        try:
            if file.locate().stat().st_size != file.size:
                return False
        except OSError:
            return False
    return True


def unmet_requirements(paths: list) -> list:
    """Returns the pinned requirements of the files that are not in place, each once."""
    unmet = {}
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                text = line.split("#")[0].strip()
                if not text:
                    continue
                requirement = Requirement(text)
                applies = requirement.marker is None or requirement.marker.evaluate()
                if applies and not is_in_place(requirement):
                    unmet[f"{requirement.name}{requirement.specifier}"] = None
    return list(unmet)


if __name__ == "__main__":
    for pin in unmet_requirements(sys.argv[1:]):
        print(pin)
