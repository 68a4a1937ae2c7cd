# shellcheck shell=bash
# Sourced by the launch scripts: TPU slices, as the configs and JAX name them: GENERATION:TOPOLOGY,
# for example v5p:4x4x4, where the topology's product is the number of chips.
#
#   accelerator_type v5p:4x4x4     v5p-128, the name that gcloud and xpk have for it
#   vm_image v5p:4x4x4             v2-alpha-tpuv5, the runtime version that goes with it
#
# v4 and v5p types end in TensorCores, two a chip; v5e (there called v5litepod) and v6e in chips. A
# type stands for one topology of its size. Others of v4 and v5p exist ("v5p:2x2x16"), but gcloud's
# --type and --topology take v4 at most, so they are refused here.

PLANES="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
SOLIDS="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24"

accelerator_type() {
  local generation="${1%%:*}" topology="${1#*:}" known chips
  case "$generation" in
    v4) known="${SOLIDS% *}" ;; # Its pods have 4,096 chips.
    v5p) known="$SOLIDS" ;;
    v5e | v6e) known="$PLANES" ;;
    *) mistake "--slice '$1' is not GENERATION:TOPOLOGY with v4, v5e, v5p or v6e" ;;
  esac
  [[ $1 == *:?* && " $known " == *" $topology "* ]] ||
    mistake "--slice '$1': the topologies of $generation are $known"
  chips=$((${topology//x/*}))
  case "$generation" in
    v4 | v5p) echo "$generation-$((2 * chips))" ;;
    v5e) echo "v5litepod-$chips" ;;
    v6e) echo "v6e-$chips" ;;
  esac
}

vm_image() {
  case "$1" in
    v4:*) echo tpu-ubuntu2204-base ;;
    v5e:*) echo v2-alpha-tpuv5-lite ;;
    v5p:*) echo v2-alpha-tpuv5 ;;
    v6e:*) echo v2-alpha-tpuv6e ;;
  esac
}
