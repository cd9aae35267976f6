#!/usr/bin/env bash
# Train the CIFAR-10 model and measure it at full size: the whole way from images to figures.
#
#   bash scripts/cifar10.sh     # on a GPU
#   STEPS=50 N=200 BATCH=100 TRAINING='training.unet.batch=16 training.classifier_recipe.epochs=1' \
#     bash scripts/cifar10.sh   # a rehearsal
#
# SOURCE=jpeg takes the images of cifar10-jpeg.npz in the downloads folder; without it the
# originals are fetched.  Weights and references end in OUT, tables and figures in RESULTS.
# TRAINING and SAMPLING are more settings for the two commands, such as compile=true; PARTS
# processes evaluate at once.  What is done already is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS=${STEPS:-6500} N=${N:-10000} BATCH=${BATCH:-2500} PARTS=${PARTS:-1}
PYTHON=${PYTHON:-.venv/bin/python} SOURCE=${SOURCE:-original}
OUT=${OUT:-runs/train/cifar10-$STEPS} RESULTS=${RESULTS:-runs/cifar10-$STEPS-$N}

say() { echo "[$(date +%T)] $*"; }

train() {
  "$PYTHON" -m scripts.train model=cifar10 training.images.source="$SOURCE" \
    reference.images.source="$SOURCE" out="$OUT" "$@" ${TRAINING:-}
}

reproduce() { # EXPERIMENT NAME SETTING...
  local experiment=$1 name=$2
  shift 2
  "$PYTHON" reproduce.py experiment="$experiment" model=cifar10 seed=0 num_samples="$N" \
    model.checkpoint="$OUT/unet-$STEPS" metrics.weights="$OUT/classifier.safetensors" \
    reference.folder="$OUT" reference.images.source="$SOURCE" \
    batch_size="$BATCH" shard_size="$BATCH" out="$RESULTS/$name" "$@" ${SAMPLING:-}
}

everything() { # SETTING...
  reproduce table1_cifar10 table1 "$@"
  reproduce figure4_cifar10 figure4 "$@"
  reproduce study_cifar10 study "$@"
}

if ! compgen -G "$OUT/cifar10_${SOURCE}_floor-*.npz" >/dev/null; then
  say "classifier and references"
  train what=classifier
fi
say "U-Net"
train training.unet.steps="$STEPS"
if [ "$PARTS" -gt 1 ]; then
  say "samples"
  everything stage=sample
  say "scores"
  running=()
  for ((part = 0; part < PARTS; part++)); do
    everything stage=evaluate part="$part" parts="$PARTS" &
    running+=($!)
  done
  for process in "${running[@]}"; do wait "$process"; done
fi
say "tables and figures"
everything
say "done"
