#!/usr/bin/env bash
# Trains all seven stages at once, one TPU slice each, as Imagen Video was trained:
#
#   bash launch/train_cascade.sh --workdir gs://... --slice SLICE [OPTIONS]
#     -- OPTIONS of tpu_pod.sh or xpk.sh [-- FLAGS of imagen-video train]
#
# for example
#
#   bash launch/train_cascade.sh --workdir gs://bucket/cascade --slice v5p:4x4x4 \
#     --slice ssr1=v5p:4x4x8 -- --zone us-east5-a --spot
#
# Each stage has its own slice, its own WORKDIR/STAGE and its own log; stages never wait for each
# other, because each learns from data made out of the real videos. At the end prints how each fared.
# Ctrl-C stops them all: they save checkpoints and delete their slices.
#
#   --workdir gs://...         WORKDIR/STAGE is the work directory of a stage
#   --slice [STAGE=]SLICE      of that stage, or of all that have none of their own; repeatable
#   --size SIZE                of the configs: full (the default) or what they offer
#   --stages STAGE,STAGE,...   only these (base,tsr1,ssr1,ssr2,tsr2,tsr3,ssr3)
#   --backend tpu_pod|xpk      the script that trains each (tpu_pod)
#   --name NAME                NAME-STAGE is the name of a stage's slice (imagen-video)
#   --logs FOLDER              FOLDER/STAGE.log, and FOLDER/STAGE for its workers (runs/NAME)
#   --dry_run                  prints the commands and runs none
#
# Exit code: 0 all trained to the end, 2 a mistake in the options, 130 or 143 stopped, 1 all else.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/environment.sh"
source "$here/options.sh"
source "$here/commands.sh"

workdir="" size="" stages="base,tsr1,ssr1,ssr2,tsr2,tsr3,ssr3" backend=tpu_pod name=imagen-video
logs="" slice=() poll_seconds=1
read_options "workdir= slice[]= size= stages= backend= name= logs= dry_run" "$@"
require_options workdir stages
[[ $backend == tpu_pod || $backend == xpk ]] || mistake "--backend '$backend' is not tpu_pod or xpk"
logs="${logs:-$ROOT/runs/$name}"
IFS=, read -ra order <<<"$stages"

declare -A slices=() pids=() results=() minutes=()

main() {
  local stage
  find_slices
  if [[ -n $dry_run ]]; then
    print_commands
    return
  fi
  check_commands
  mkdir -p "$logs"
  clean_up_at_exit clean_up
  for stage in "${order[@]}"; do
    begin_stage "$stage"
  done
  while [[ ${#pids[@]} -gt 0 ]]; do
    pause
    for stage in "${!pids[@]}"; do
      kill -0 "${pids[$stage]}" 2>/dev/null || end_stage "$stage"
    done
  done
  for stage in "${order[@]}"; do
    [[ ${results[$stage]} == trained ]] || return 1
  done
}

find_slices() {
  local given stage common="" seen=,
  for stage in "${order[@]}"; do
    [[ $stage =~ ^[a-z0-9_]+$ ]] || mistake "--stages '$stages' is not STAGE,STAGE,..."
    [[ $seen != *",$stage,"* ]] || mistake "--stages '$stages' has $stage twice"
    seen+="$stage,"
  done
  for given in "${slice[@]}"; do
    stage="${given%%=*}"
    if [[ $given != *=* ]]; then
      common="$given"
    elif [[ ",$stages," == *",$stage,"* ]]; then
      slices[$stage]="${given#*=}"
    else
      mistake "--slice '$given': the stages are $stages"
    fi
  done
  for stage in "${order[@]}"; do
    slices[$stage]="${slices[$stage]:-$common}"
    [[ -n ${slices[$stage]} ]] || mistake "--slice is missing for $stage"
  done
}

set_command() { # STAGE [--dry_run]
  command=(bash "$here/$backend.sh" --config "configs/stages/$1.py${size:+:$size}"
    --workdir "$workdir/$1" --slice "${slices[$1]}" --name "$name-$1" --logs "$logs/$1"
    "${@:2}" "${rest[@]}")
}

print_commands() {
  local stage
  for stage in "${order[@]}"; do
    set_command "$stage"
    echo "# $(quoted "${command[@]}")"
    set_command "$stage" --dry_run
    "${command[@]}"
  done
}

# A mistake is found before the first stage begins.
check_commands() {
  local stage
  for stage in "${order[@]}"; do
    set_command "$stage" --dry_run
    "${command[@]}" >/dev/null
  done
}

begin_stage() {
  set_command "$1"
  "${command[@]}" >"$logs/$1.log" 2>&1 </dev/null &
  pids[$1]=$!
  note "$1 begins on ${slices[$1]}, see $logs/$1.log"
}

end_stage() {
  local status=0
  wait "${pids[$1]}" || status=$?
  unset "pids[$1]"
  minutes[$1]=$((SECONDS / 60))
  results[$1]=trained
  ((status == 0)) || results[$1]="failed: exit code $status"
  [[ -z $stopping ]] || results[$1]=stopped
  note "$1 ${results[$1]}"
}

stopping=""

clean_up() {
  local stage
  if [[ ${#pids[@]} -gt 0 ]]; then
    stopping=yes
    note "stopping ${#pids[@]} stages, which save checkpoints and delete their slices"
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
  for stage in "${!pids[@]}"; do
    end_stage "$stage"
  done
  printf '%-6s %-12s %-20s %8s  %s\n' stage slice result minutes log
  for stage in "${order[@]}"; do
    printf '%-6s %-12s %-20s %8s  %s\n' "$stage" "${slices[$stage]}" "${results[$stage]:--}" \
      "${minutes[$stage]:--}" "$logs/$stage.log"
  done
}

main
