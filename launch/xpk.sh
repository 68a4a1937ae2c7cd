#!/usr/bin/env bash
# Trains, distills or samples on a TPU slice of a GKE cluster, through xpk:
#
#   bash launch/xpk.sh --config FILE[:SIZE] --workdir gs://... --slice SLICE --cluster CLUSTER
#     [OPTIONS] [-- FLAGS of imagen-video train]
#   bash launch/xpk.sh --command sample --out gs://... --slice SLICE --cluster CLUSTER
#     [OPTIONS] -- FLAGS of imagen-video sample
#
# for example
#
#   bash launch/xpk.sh --config configs/stages/base.py --workdir gs://bucket/base \
#     --slice v5p:4x4x4 --cluster tpus -- --config.train.num_steps=500000
#
# Creates a workload, waits for its end, collects its logs and deletes it: at the end, after a
# failure, and after Ctrl-C, which first lets a training save a checkpoint. The cluster is one that
# `xpk cluster create` made, with node pools of that slice. When a node is preempted or fails, the
# cluster starts the workload again, and the command goes on from its last checkpoint. A command
# that fails by itself is not repeated: the end of its log is shown.
#
#   --command COMMAND           train (the default), distill or sample
#   --config FILE[:SIZE]        of the command, a file of this repository; sample needs none
#   --workdir gs://...          where checkpoints and metrics of train and distill go
#   --out gs://...              where the videos of sample go
#   --slice SLICE               v4, v5e, v5p or v6e with a topology; recipes for it are taken
#   --cluster CLUSTER           where to run
#   --project PROJECT           of the cluster; gcloud's default if not given
#   --zone ZONE                 of the cluster; gcloud's default if not given
#   --name NAME                 of the workload; imagen-video-STAGE, -distill-STAGE or -sample if
#                               not given
#   --base_docker_image IMAGE   gets this working tree and installs it at the start (python:3.12)
#   --docker_image IMAGE        has the project installed; is run instead, as it is
#   --logs FOLDER               where output goes, one file a pod (runs/NAME)
#   --max_retries N             how often the cluster starts it again (10)
#   --restart_on CODES          exit codes to start it again after, beside 42 and 127 to 255, which
#                               are those of a lost machine: "1" adds errors that Python reports
#   --poll_seconds SECONDS      between two looks at the workload's state (60)
#   --create_flag=FLAG          one more flag of `xpk workload create`; repeatable
#   --keep                      leaves the workload there; one that has ended goes after 12 hours
#   --dry_run                   prints the commands and runs none
#
# Needs xpk, gcloud and kubectl, logged in, and docker for --base_docker_image.
#
# Exit code: 0 done, 2 a mistake in the options or the config, the command's own if it failed, 130 or
# 143 stopped, 1 all else.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/environment.sh"
source "$here/options.sh"
source "$here/commands.sh"
source "$here/slices.sh"
source "$here/job.sh"
source "$here/worker_logs.sh"

cluster="" project="" zone="" docker_image="" base_docker_image="" restart_on="" keep=""
max_retries=10 poll_seconds=60
create_flag=()
read_options "command= config= workdir= out= slice= cluster= project= zone= name= \
base_docker_image= docker_image= logs= max_retries= restart_on= poll_seconds= create_flag[]= keep dry_run" "$@"
require_options slice cluster
complete_slice
check_config_is_here
[[ -z $docker_image || -z $base_docker_image ]] ||
  mistake "--docker_image and --base_docker_image exclude each other"
# xpk hands the folder to docker through a shell, without quotes.
[[ -n $docker_image || $logs =~ ^[A-Za-z0-9_./@%+,-]+$ ]] ||
  mistake "--logs '$logs': xpk builds its image there, and takes no spaces or quotes in the name"
check_whole_number max_retries
check_seconds poll_seconds
accelerator="$(accelerator_type "$slice")"

# exec, because xpk hands SIGTERM to the process that it started and to none below it.
work="exec $(quoted imagen-video "$command" "${flags[@]}")"
if [[ -n $docker_image ]]; then
  image=(--docker-image="$docker_image")
else
  image=(--base-docker-image="${base_docker_image:-python:3.12}" --script-dir="$logs/source")
  work="python -m pip install --quiet '.[tpu,train]' && $work"
fi
place=(--cluster="$cluster" ${project:+--project="$project"} ${zone:+--zone="$zone"})
create=(xpk workload create "${place[@]}" --workload="$name" --tpu-type="$accelerator"
  --num-slices=1 "${image[@]}" --max-restarts="$max_retries"
  ${restart_on:+--restart-on-exit-codes="$restart_on"} --termination-grace-period-seconds=120
  "${create_flag[@]}" --command="$work")
list=(xpk workload list "${place[@]}" --filter-by-job="$name")
# Comes back after a second: 0 succeeded, 124 not yet ended, 125 failed.
look=(xpk workload list "${place[@]}" --wait-for-job-completion="$name" --timeout=1)
read_logs=(kubectl logs --selector="xpk.google.com/workload=$name" --container=jax-tpu
  --prefix --tail=-1 --max-log-requests=10000 --ignore-errors)
delete=(xpk workload delete "${place[@]}" --workload="$name" --force)

asked=""   # whether there may be a workload
context="" # the name that kubectl has for the cluster

main() {
  clean_up_at_exit clean_up
  if [[ -n $dry_run ]]; then
    quoted "${list[@]}"
    echo "context=\"\$(kubectl config current-context)\""
  else
    mkdir -p "$logs"
    check_name_is_free
    find_context
  fi
  [[ -n $docker_image ]] || copy_source
  create_workload
  run_command
}

check_name_is_free() {
  local status=0
  exists || status=$?
  case "$status" in
    0) fail "$name exists: choose another --name or run: $(quoted "${delete[@]}")" ;;
    2) fail "xpk does not answer: $(tail -n 1 "$logs/list.log")" ;;
  esac
}

exists() { # Returns 2 if xpk does not answer.
  "${list[@]}" >"$logs/list.log" 2>&1 </dev/null || return 2
  grep -q "^$name " "$logs/list.log"
}

# xpk has just made the cluster's context kubectl's current one, which it is only until another xpk
# names another cluster. Such a context is called gke_PROJECT_LOCATION_CLUSTER.
find_context() {
  local try
  for try in 1 2 3; do
    [[ $try -eq 1 ]] || exists || true
    context="$(kubectl config current-context 2>>"$logs/kubectl.log")" ||
      fail "kubectl does not answer: $(tail -n 1 "$logs/kubectl.log")"
    [[ $context != *_"$cluster" ]] || return 0
  done
}

copy_source() {
  run "$logs/xpk.log" rm -rf "$logs/source"
  run "$logs/xpk.log" mkdir "$logs/source"
  run "$logs/xpk.log" cp -R "${SOURCE[@]/#/$ROOT/}" "$logs/source"
}

create_workload() {
  note "creating the workload on $accelerator ($slice) of $cluster; logs in $logs"
  asked=yes
  run "$logs/xpk.log" "${create[@]}" || return 1
}

run_command() {
  local status=0 failure
  if [[ -n $dry_run ]]; then
    echo "$(quoted "${read_logs[@]}" --follow) --context=\"\$context\""
    quoted "${look[@]}"
    echo "$(quoted "${read_logs[@]}" --follow=false) --context=\"\$context\""
    return
  fi
  wait_for_end || status=$?
  cancel
  rm -f "$logs/exits" # of pods that were started again
  collect_logs --follow=false || note "kubectl gives no logs, see $logs/kubectl.log"
  failure="$(first_failure "$logs")"
  case "$status" in
    0) note "$command is done" ;;
    125)
      [[ -n $failure ]] || failure="none 1"
      note "$command failed with exit code ${failure##* }"
      show_last_lines "$logs" "${failure%% *}"
      return "${failure##* }"
      ;;
    *)
      note "xpk does not answer, see $logs/xpk.log"
      return 1
      ;;
  esac
}

# Follows logs meanwhile: that ends with each pod, and begins again with the pods that come after.
wait_for_end() {
  local status unanswered=0
  while :; do
    if [[ -z $background ]] || ! kill -0 "$background" 2>/dev/null; then
      begin collect_logs --follow
    fi
    pause
    status=0
    "${look[@]}" >>"$logs/xpk.log" 2>&1 </dev/null || status=$?
    case "$status" in
      0 | 125) return "$status" ;;
      124) unanswered=0 ;;
      *) ((++unanswered < 10)) || return "$status" ;;
    esac
  done
}

collect_logs() {
  "${read_logs[@]}" "$1" --context="$context" 2>>"$logs/kubectl.log" | count_lines | collect_lines "$logs"
}

clean_up() {
  local try status
  [[ -n $asked ]] || return 0
  if [[ -n $keep ]]; then
    note "kept; to delete it: $(quoted "${delete[@]}")"
    return
  fi
  note "deleting the workload"
  for try in 1 2 3; do
    ! run "$logs/xpk.log" "${delete[@]}" || return 0
    status=0
    exists || status=$?
    [[ $status -ne 1 ]] || return 0 # It was never made.
    pause
  done
  note "NOT DELETED after $try tries, and it holds its machines until you run: $(quoted "${delete[@]}")"
  return 1
}

shown="*-slice-job-0-0-*"
main
