#!/usr/bin/env bash
# From text to a trained model on the command line: prepare, train, measure, let it write.
#   examples/03_train_cli.sh [FOLDER]
set -euo pipefail
out=${1:-out/example}

# The prose that every Python carries; give your own text with --corpus FILE, FOLDER or hf:NAME.
retoken prepare --corpus builtin --vocab-size 1024 --max-bytes 400000 --out "$out/data"

# A small backbone with MoRT; the same command continues an interrupted run.
retoken train demo --data "$out/data" --variant mort --steps 20 --batch-size 8 --context-length 64 --out "$out/run"

retoken eval "$out/run" --data "$out/data"
retoken generate "$out/run" --prompt "The function" --max-new-tokens 30
