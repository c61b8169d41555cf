#!/bin/sh
# How long does it take on a Pi, and which of two programs is faster?
#   ./run.sh                       an emulated Raspberry Pi 4 behind a real ssh server on this host stands in for one
#   ./run.sh ssh://pi@raspberrypi  a board of yours (its Python needs numpy and ai-edge-litert)
set -eu
cd "$(dirname "$0")"
python train.py
edgekit build net.py:make_net --target rpi4 --calibration digits.npz --preprocess scale=1/16 --latency none
edgekit build net.py:make_net --target rpi4 --evaluation digits.npz --preprocess scale=1/16 --latency none \
  --recipe float32 -o float32

device=${1:-rpi4-ssh}
if [ $# -eq 0 ]; then
  rm -f devices.toml
  edgekit emulator serve rpi4 --config devices.toml > serve.log 2>&1 &
  server=$!
  trap 'kill "$server" 2> /dev/null; wait "$server" 2> /dev/null || true' EXIT
  until [ -s devices.toml ]; do
    kill -0 "$server" 2> /dev/null || { cat serve.log >&2; exit 3; }
    sleep 1
  done
fi

# The same integers as here? Then its speed, with what the number is worth.
edgekit check edgekit-build/make_net-rpi4 --device "$device" --evaluation digits.npz --latency none
edgekit profile edgekit-build/make_net-rpi4 --device "$device" --profile smoke
# Behind an emulated board, times say nothing of a Pi (EMULATED_TIMES); the exact count of instructions does.
[ $# -gt 0 ] || device=emulator:rpi4
edgekit compare float32/make_net-rpi4 edgekit-build/make_net-rpi4 --device "$device"
