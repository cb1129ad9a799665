#!/usr/bin/env bash
# Installs the fusionbench whose action this is. PIP_ARGS has one argument on each line.
# Editable: where that fusionbench is the repository itself, `check --paired` imports each revision's own.
set -euo pipefail

arguments=()
while IFS= read -r line; do
    if [ -n "$line" ]; then arguments+=("$line"); fi
done <<<"$PIP_ARGS"
python -m pip install --quiet ${arguments[@]+"${arguments[@]}"} --editable "$ACTION/../../.."
