#!/usr/bin/env bash
# Trains the parts of the embedded demonstration from nothing, the text encoder and the seven tiny
# stages, and exports them as the package ships them. Every part resumes where it stopped. The stages
# read the encoder that the package has, so that they go with its other stages; one just trained is
# read with: STAGE ... -- --config.text.encoder=WORKDIR/weights/text_encoder.safetensors
# --config.text.tokenizer=WORKDIR/weights/tokenizer.model
#
#   bash launch/train_demo.sh WORKDIR [STAGE ...] [-- FLAGS of imagen-video train]
#
# WORKDIR/STAGE holds checkpoints and metrics of a stage, WORKDIR/weights the exported files. With
# stages named, only these are trained; the others' work directories are left alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ -z ${1:-} || $1 == -* ]]; then
  echo "usage: bash launch/train_demo.sh WORKDIR [STAGE ...] [-- FLAGS of imagen-video train]" >&2
  exit 2
fi
workdir="$1"
shift
if [[ $workdir == *://* ]]; then
  echo "error: WORKDIR must lie on a disk: $workdir" >&2
  exit 2
fi
stages=()
while [[ $# -gt 0 && $1 != -- ]]; do
  stages+=("$1")
  shift
done
[[ $# -gt 0 ]] && shift
if [[ ${#stages[@]} -eq 0 ]]; then
  stages=(text base tsr1 ssr1 ssr2 tsr2 tsr3 ssr3)
fi

install_into_venv "[train]"
# Each reading thread resizes small clips: BLAS threads of its own would only wait for each other.
export OPENBLAS_NUM_THREADS=1
# XLA:CPU asks for fresh memory at every step; huge pages spare most of the page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
for stage in "${stages[@]}"; do
  config="configs/stages/$stage.py:tiny"
  [[ $stage == text ]] && config=configs/text_encoder.py
  # tsr3 does what tsr2 does at twice the frame rate: it starts from what tsr2 has learned.
  start=()
  if [[ $stage == tsr3 && -f "$workdir/weights/tsr2.safetensors" ]]; then
    start=("--config.train.init_from=$workdir/tsr2")
  fi
  echo "== $stage"
  "$VENV/bin/imagen-video" train --config "$config" --workdir "$workdir/$stage" \
    ${start[@]+"${start[@]}"} "$@"
  "$VENV/bin/imagen-video" export --workdir "$workdir/$stage" --out "$workdir/weights"
done
