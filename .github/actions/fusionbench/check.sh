#!/usr/bin/env bash
# Runs `fusionbench check` and leaves its exit code to the action's last step, so that its files are uploaded before.
# An input is the value of one option, whatever is in it; ARGS has one argument on each line.
set -euo pipefail

folder=$(mktemp -d "$RUNNER_TEMP/fusionbench-XXXXXX")
arguments=(check "--json=$folder/judgement.json" "--markdown=$folder/report.md" "--junit=$folder/junit.xml" --github)
if [ -n "$SUITE" ]; then arguments+=("--suite=$SUITE"); fi
if [ -n "$BASELINE" ]; then arguments+=("--baseline=$BASELINE"); fi
if [ -n "$PAIRED_BASE" ]; then arguments+=("--paired=$PAIRED_BASE"); fi
if [ -n "$GATE" ]; then arguments+=("--gate=$GATE"); fi
while IFS= read -r line; do
    if [ -n "$line" ]; then arguments+=("$line"); fi
done <<<"$ARGS"

code=0
fusionbench "${arguments[@]}" || code=$?
{
    echo "exit-code=$code"
    echo "folder=$folder"
    echo "json=$folder/judgement.json"
} >>"$GITHUB_OUTPUT"
