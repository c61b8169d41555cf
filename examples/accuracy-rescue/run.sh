#!/bin/sh
# A network that loses with int8: diagnosed, searched, rescued.
set -eu
cd "$(dirname "$0")"
python train.py
options="--target rpi4 --calibration digits.npz --evaluation digits.npz --preprocess scale=1/16"

echo "== int8 as it is: over the budget"
if edgekit build net.py:make_net $options --max-drop 1% --latency none -o plain; then
  echo "it keeps the budget: nothing to rescue" >&2
  exit 1
fi
echo "== where is it lost?"
edgekit diagnose net.py:make_net $options
echo "== the search"
edgekit build net.py:make_net $options --max-drop 1% --latency none --recipe auto -o rescued
edgekit compare plain/make_net-rpi4 rescued/make_net-rpi4
