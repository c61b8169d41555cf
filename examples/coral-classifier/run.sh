#!/bin/sh
# The whole example: train, build for both targets, look at the result.
set -eu
cd "$(dirname "$0")"
python train.py
edgekit build
edgekit inspect edgekit-build/digits-coral --target coral
edgekit check edgekit-build/digits-rpi4 --evaluation digits.npz
edgekit compare edgekit-build/digits-coral edgekit-build/digits-rpi4
