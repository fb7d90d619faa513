"""Decides which Keras `tf.keras` is, before anything uses it: Keras 2, on every TensorFlow.

So it is with the other library that reads the environment when it is imported: Matplotlib, see
`drop_missing_backend`.

TensorFlow up to 2.15 carries Keras 2. Later ones take Keras 3, with which neither Horovod nor the
legacy optimizers work, unless TF_USE_LEGACY_KERAS is set when `tf.keras` is first used: then it is
the package tf_keras. Every package of this repository imports this one first, so that no
program can forget it; no other file asks for Keras' or TensorFlow's version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping

VARIABLE = "TF_USE_LEGACY_KERAS"
_BACKEND = "MPLBACKEND"
_FIRST_WITH_KERAS_3 = (2, 16)


def choose_keras(
    environment: MutableMapping[str, str], *, tensorflow: str, has_tf_keras: bool
) -> None:
    """Makes the environment ask for Keras 2.

    Args:
      environment: where the variable is set, or removed.
      tensorflow: version of the TensorFlow that will be imported, or '' if there is none.
      has_tf_keras: whether the package tf_keras can be imported.

    Raises:
      ImportError: only Keras 3 could be had, or the environment asks for it.
    """
    numbers = tuple(int(part) for part in tensorflow.split(".")[:2] if part.isdigit())
    if not tensorflow:
        return
    if numbers < _FIRST_WITH_KERAS_3:
        # Set for another environment, it would send this TensorFlow to a package that is not here.
        environment.pop(VARIABLE, None)
        return
    if not has_tf_keras:
        minor = ".".join(map(str, numbers))
        raise ImportError(
            f"TensorFlow {tensorflow} comes with Keras 3, with which Ringdet does not work, and "
            f"Keras 2 is not installed: pip install 'tf_keras=={minor}.*', or make the environment "
            "with scripts/setup_env.sh",
            name=__name__,
        )
    if environment.get(VARIABLE, "1") not in ("1", "true", "True"):
        raise ImportError(
            f"{VARIABLE}={environment[VARIABLE]} asks for Keras 3, with which Ringdet does not "
            f"work: unset {VARIABLE} or set it to 1",
            name=__name__,
        )
    environment[VARIABLE] = "1"


def refuse_keras_3(version: str) -> None:
    """Raises ImportError if a program has used `tf.keras` as Keras 3 before it came here."""
    if not version.startswith("2."):
        raise ImportError(
            f"tf.keras is Keras {version} here, and Ringdet needs Keras 2: set {VARIABLE}=1, or "
            "import a package of Ringdet before tf.keras is used"
        )


def drop_missing_backend(environment: MutableMapping[str, str]) -> None:
    """Takes out a notebook's MPLBACKEND that is not installed here.

    Notebooks give theirs to the programs that they start, also to those of another environment,
    where Matplotlib could then not be imported. Everything is drawn into files, without it.
    """
    kind, _, module = environment.get(_BACKEND, "").partition("://")
    if kind == "module" and importlib.util.find_spec(module.split(".")[0]) is None:
        del environment[_BACKEND]


def version_of_module(name: str) -> str:
    """Returns the version of the distribution that provides a module, '' if none does.

    The module `tensorflow` comes from several: tensorflow-cpu, tensorflow-rocm, tf-nightly, ... Of
    those that are installed, the first in which Python looks is the one that is imported.
    """
    for distribution in importlib.metadata.distributions():
        # Few build programs leave the list of modules out; the name is all there is then.
        modules = distribution.read_text("top_level.txt") or distribution.metadata["Name"]
        if name in modules.split():
            return distribution.version
    return ""


drop_missing_backend(os.environ)
choose_keras(
    os.environ,
    tensorflow=version_of_module("tensorflow"),
    has_tf_keras=importlib.util.find_spec("tf_keras") is not None,
)
if "tensorflow" in sys.modules and "keras" in sys.modules:
    # The Keras inside TensorFlow 2.15 does not tell its version.
    refuse_keras_3(getattr(sys.modules["tensorflow"].keras, "__version__", "2."))
