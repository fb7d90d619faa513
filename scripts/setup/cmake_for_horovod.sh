#!/bin/sh
# The cmake that Horovod's setup.py calls (HOROVOD_CMAKE). Its build command ends with make's VERBOSE=1, which Ninja
# would take for a target, and asks for everything, a Gloo without a user included. No variable carries the
# generator and the run path past setup.py, so they are added here.
set -eu

if [ "$1" = --build ]; then
  exec "$RINGDET_CMAKE" --build "$2" --target tensorflow
fi
exec "$RINGDET_CMAKE" -G Ninja "-DCMAKE_BUILD_RPATH=$RINGDET_RPATH" "$@"
