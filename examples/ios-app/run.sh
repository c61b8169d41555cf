#!/bin/sh
# A PyTorch classifier as a Swift package.
set -eu
cd "$(dirname "$0")"
python train.py
edgekit build net.py:make_net --target ios --runtime coreml --evaluation digits.npz --preprocess scale=1/16 \
  --latency none
edgekit export edgekit-build/make_net-ios-coreml --platform ios --name DigitsModel -o app
find app -type f | sort
