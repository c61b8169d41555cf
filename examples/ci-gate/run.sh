#!/bin/sh
# What the workflow does, here: a release, a change that passes the gate, and one that does not.
set -eu
cd "$(dirname "$0")"
python train.py
rm -rf released edgekit-build
edgekit build --latency none -o released -q

echo "== a change that keeps everything"
sh gate.sh
echo "== a change that harms the network"
cp net.pt good.pt
python harm.py
if sh gate.sh; then
  echo "the gate let it through" >&2
  exit 1
fi
mv good.pt net.pt
echo "== stopped, as it should be; gate/summary.md:"
head -12 gate/summary.md
