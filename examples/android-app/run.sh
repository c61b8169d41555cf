#!/bin/sh
# A Keras classifier as a Gradle module.
set -eu
cd "$(dirname "$0")"
python train.py
edgekit build digits.keras --target android --calibration digits.npz --preprocess scale=1/16 --latency none --max-drop 2%
edgekit export edgekit-build/digits-android --platform android --name DigitsModel --package com.example.digits -o app
find app -type f | sort
