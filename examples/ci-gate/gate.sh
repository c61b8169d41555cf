#!/bin/sh
# The gate: build by edgekit.toml, hold the result against its budgets and against what was released.
# Writes gate/results.xml (JUnit), gate/findings.sarif and gate/summary.md whatever the verdict; its exit code decides.
set -eu
mkdir -p gate
edgekit build --latency none -q || [ $? -eq 1 ]   # a broken budget is told below, with the rest
edgekit check edgekit-build/digits-rpi4 --baseline released/digits-rpi4 --evaluation digits.npz --latency none \
  --max-regression 0.5% --report gate/results.xml --report gate/findings.sarif --report gate/summary.md -q
