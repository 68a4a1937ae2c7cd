#!/usr/bin/env bash
# Trains, distills or samples on a Cloud TPU slice, from asking for the slice to deleting it:
#
#   bash launch/tpu_pod.sh --config FILE[:SIZE] --workdir gs://... --slice SLICE --zone ZONE
#     [OPTIONS] [-- FLAGS of imagen-video train]
#   bash launch/tpu_pod.sh --command sample --out gs://... --slice SLICE --zone ZONE
#     [OPTIONS] -- FLAGS of imagen-video sample
#
# for example
#
#   bash launch/tpu_pod.sh --config configs/stages/base.py --workdir gs://bucket/base \
#     --slice v5p:4x4x4 --zone us-east5-a --spot -- --config.train.num_steps=500000
#   bash launch/tpu_pod.sh --command sample --out gs://bucket/videos --slice v5e:4x4 \
#     --zone us-west4-a --config configs/cascade.py -- --weights gs://bucket --prompt "a red circle"
#
# Creates a queued resource, waits for it, installs this working tree on all workers, runs the command,
# and deletes the resource: at the end, after a failure, and after Ctrl-C, which first lets a training
# save a checkpoint. A slice that is preempted or lost is replaced, and the command goes on from its
# last checkpoint. A command that fails by itself is not repeated: the end of its log is shown.
#
#   --command COMMAND         train (the default), distill or sample
#   --config FILE[:SIZE]      of the command, a file of this repository; sample needs one to read
#                             captions by another encoder than the embedded one, such as T5-XXL
#   --workdir gs://...        where checkpoints and metrics of train and distill go
#   --out gs://...            where the videos of sample go
#   --slice SLICE             v4, v5e, v5p or v6e with a topology; recipes for it are taken
#   --zone ZONE               where to ask for the slice
#   --project PROJECT         gcloud's default project if not given
#   --name NAME               of the resource and its VM; imagen-video-STAGE, -distill-STAGE or
#                             -sample if not given
#   --spot, --reserved        capacity; on demand if neither is given
#   --runtime_version IMAGE   of the VMs; the one for the generation if not given
#   --git URL                 install from there, not from this working tree,
#   --ref REF                 at this branch, tag or commit (main)
#   --logs FOLDER             where output goes, one file a worker and attempt (runs/NAME)
#   --max_retries N           how many lost slices are replaced (10)
#   --poll_seconds SECONDS    between two looks at the slice's state (30)
#   --create_flag=FLAG        one more flag of `gcloud compute tpus queued-resources create`; repeatable
#   --ssh_flag=FLAG           one more flag of `gcloud compute tpus tpu-vm ssh` and `scp`; repeatable
#   --keep                    leaves the resource there
#   --dry_run                 prints the commands and runs none
#
# Needs gcloud, logged in, with its key in the agent: ssh-add ~/.ssh/google_compute_engine
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

zone="" project="" runtime_version="" git="" ref="" spot="" reserved="" keep="" max_retries=10
create_flag=() ssh_flag=()
read_options "command= config= workdir= out= slice= zone= project= name= spot reserved \
runtime_version= git= ref= logs= max_retries= poll_seconds= create_flag[]= ssh_flag[]= keep dry_run" "$@"
require_options slice zone
complete_slice
[[ -n $git ]] || check_config_is_here
[[ -z $spot || -z $reserved ]] || mistake "--spot and --reserved exclude each other"
[[ -n $git || -z $ref ]] || mistake "--ref needs --git: without it this working tree is installed"
check_whole_number max_retries
check_seconds poll_seconds
accelerator="$(accelerator_type "$slice")"

LOST=75          # exit code of a step that the slice was lost under
attempt="$logs"  # where the output of this attempt goes
asked="" runs="" # whether there may be a slice, and the command on it

place=(--zone="$zone" ${project:+--project="$project"})
resource=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
create=("${resource[@]}" create "$name" --node-id="$name" "${place[@]}"
  --accelerator-type="$accelerator" --runtime-version="${runtime_version:-$(vm_image "$slice")}"
  ${spot:+--spot} ${reserved:+--reserved} "${create_flag[@]}" --quiet)
describe=("${resource[@]}" describe "$name" "${place[@]}" "--format=value(state.state)")
describe_vm=("${vm[@]}" describe "$name" "${place[@]}" "--format=value(state)")
delete=("${resource[@]}" delete "$name" "${place[@]}" --force --quiet)
copy=("${vm[@]}" scp "$logs/source.tar.gz" "$name:imagen-video.tar.gz" "${place[@]}" --worker=all
  --quiet "${ssh_flag[@]}")
# A connection to a machine that is gone ends after minutes, not after hours.
on_workers=("${vm[@]}" ssh "$name" "${place[@]}" --worker=all --quiet
  --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=30 "${ssh_flag[@]}")
work="$(quoted bash imagen-video/launch/worker.sh run "$command" "${flags[@]}")"

main() {
  local lost=0 status
  clean_up_at_exit clean_up
  [[ -n $dry_run ]] || mkdir -p "$logs"
  [[ -n $dry_run ]] || check_name_is_free
  [[ -n $git ]] || pack
  while :; do
    begin_attempt
    status=0
    run_on_a_slice || status=$?
    [[ $status -eq $LOST ]] || return "$status"
    if ((++lost > max_retries)); then
      note "gave up after $lost lost slices (--max_retries $max_retries)"
      return 1
    fi
    delete_slice || return 1
    note "slice lost; retry $lost of $max_retries goes on from the last checkpoint"
    pause
  done
}

run_on_a_slice() {
  create_slice && wait_for_slice && install_project && run_command
}

begin_attempt() {
  local number=1
  while [[ -e $logs/attempt_$number ]]; do number=$((number + 1)); done
  attempt="$logs/attempt_$number"
  [[ -n $dry_run ]] || mkdir "$attempt"
}

clean_up() {
  if [[ -n $runs ]]; then
    note "stopping $command; a training first saves a checkpoint"
    within 300 follow_lines "bash imagen-video/launch/worker.sh stop" || true
  fi
  if [[ -n $asked && -n $keep ]]; then
    note "kept; to delete it: $(quoted "${delete[@]}")"
  elif [[ -n $asked ]]; then
    note "deleting the slice"
    delete_slice
  fi
}

# The slice.

check_name_is_free() {
  local state
  state="$(slice_state)"
  case "$state" in
    GONE) ;;
    UNKNOWN) fail "gcloud does not answer: $(tail -n 1 "$logs/state.log")" ;;
    *) fail "$name exists ($state): choose another --name or run: $(quoted "${delete[@]}")" ;;
  esac
}

create_slice() {
  note "asking for $accelerator ($slice) in $zone; logs in $attempt"
  asked=yes
  run "$attempt/gcloud.log" "${create[@]}" || return 1
}

wait_for_slice() {
  local state before=""
  if [[ -n $dry_run ]]; then
    quoted "${describe[@]}"
    return
  fi
  while :; do
    state="$(slice_state)"
    [[ $state == "$before" ]] || note "slice is $state"
    before="$state"
    if is_lost "$state"; then
      "${describe[@]/value(state.state)/yaml(state)}" >&2 || true
      return "$LOST"
    fi
    [[ $state != ACTIVE ]] || return 0
    pause
  done
}

# Prints ACTIVE if the slice can be used, GONE if there is none, UNKNOWN if gcloud does not answer,
# otherwise the state of the queued resource or, that being active, of its VM (VM_GONE without one).
slice_state() {
  local state
  state="$(answer_of "${describe[@]}")"
  if [[ $state == ACTIVE ]]; then
    state="$(answer_of "${describe_vm[@]}")"
    case "$state" in
      READY) state=ACTIVE ;;
      GONE) state=VM_GONE ;;
    esac
  fi
  echo "$state"
}

answer_of() {
  local answer
  if answer="$("$@" 2>"$logs/state.log")"; then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$logs/state.log"; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

is_lost() {
  case "$1" in
    FAILED | SUSPENDING | SUSPENDED | DELETING | GONE) ;;
    VM_GONE | PREEMPTED | TERMINATED | STOPPING | STOPPED | RESTARTING | REPAIRING) ;;
    *) return 1 ;;
  esac
}

# The workers of a preempted slice may end before its state says so.
is_lost_soon() {
  local look
  for look in 1 2 3 4; do
    ! is_lost "$(slice_state)" || return 0
    [[ $look -eq 4 ]] || pause
  done
  return 1
}

delete_slice() {
  local try
  if [[ -n $dry_run ]]; then
    quoted "${delete[@]}"
    return
  fi
  for try in {1..10}; do # One that is being suspended cannot be deleted at once.
    if [[ $(slice_state) == GONE ]] || run "$attempt/gcloud.log" "${delete[@]}"; then
      asked=""
      return
    fi
    pause
  done
  note "NOT DELETED after $try tries, and it costs money until you run: $(quoted "${delete[@]}")"
  return 1
}

# What runs on it.

pack() {
  run "$logs/gcloud.log" tar -czf "$logs/source.tar.gz" --exclude=__pycache__ \
    -C "$ROOT" "${SOURCE[@]}" || return 1 # tar's own 2 would say that the options are wrong
}

install_project() {
  local fetch="mkdir imagen-video && tar -xzf imagen-video.tar.gz -C imagen-video" status=0
  note "installing on all workers, which takes some minutes"
  if [[ -n $git ]]; then
    fetch="$(quoted git clone --quiet "$git" imagen-video)"
    fetch+=" && $(quoted git -C imagen-video checkout --quiet "${ref:-main}")"
  else
    run "$attempt/install.log" "${copy[@]}" || status=$?
  fi
  if ((status == 0)); then
    # Begins from nothing: gcloud repeats a command whose connection breaks.
    run "$attempt/install.log" "${on_workers[@]}" --command="rm -rf imagen-video && $fetch && \
bash imagen-video/launch/worker.sh install" || status=$?
  fi
  ((status)) || return 0
  ! is_lost_soon || return "$LOST"
  return 1
}

run_command() {
  local status=0
  if [[ -n $dry_run ]]; then
    quoted "${on_workers[@]}" --command="$work"
    return
  fi
  note "$command begins"
  runs=yes
  run_to_its_end || status=$?
  runs=""
  return "$status"
}

# Follows the command, again after a broken connection. Returns 0, LOST or the command's own status.
run_to_its_end() {
  local failure lines worker broken=0
  while :; do
    lines="$(lines_so_far)"
    if follow_command; then
      note "$command is done"
      return
    fi
    failure="$(first_failure "$attempt")"
    # Exit code 2 is bad input, whatever became of the slice meanwhile.
    if [[ ${failure##* } != 2 ]] && is_lost_soon; then
      return "$LOST"
    fi
    if [[ ${failure##* } -ge 128 ]] && worker="$(lost_worker)"; then
      note "$worker is lost"
      return "$LOST"
    fi
    [[ -z $failure ]] || break
    [[ $(lines_so_far) -eq $lines ]] || broken=0
    if ((++broken > 10)); then
      note "cannot reach the workers, see $attempt/gcloud.log"
      return 1
    fi
    note "the connection broke; $command goes on, and is followed again"
  done
  note "$command failed with exit code ${failure##* } on ${failure%% *}"
  show_last_lines "$attempt" "${failure%% *}"
  return "${failure##* }"
}

# Prints the worker that was taken away, by which its neighbours crash too: it ended by SIGTERM (143),
# which here only the platform sends, or left no exit status.
lost_worker() {
  local log worker
  for log in "$attempt"/worker_*.log; do
    worker="$(basename "$log" .log)"
    if ! awk -v worker="$worker" '$1 == worker && $2 != 143 {found = 1} END {exit !found}' \
      "$attempt/exits"; then
      echo "$worker"
      return
    fi
  done
  return 1
}

follow_command() {
  begin follow_lines "$work"
  while pause && kill -0 "$background" 2>/dev/null; do
    if is_lost "$(slice_state)"; then
      cancel
      return 1
    fi
  done
  finish
}

follow_lines() {
  "${on_workers[@]}" --command="$1" 2>>"$attempt/gcloud.log" | collect_lines "$attempt"
}

lines_so_far() {
  { cat "$attempt"/worker_*.log 2>/dev/null || true; } | wc -l
}

shown=worker_0
main
