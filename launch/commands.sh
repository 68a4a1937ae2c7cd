# shellcheck shell=bash
# Sourced by the launch scripts: commands that are run or, under --dry_run, printed.
#
#   run LOG COMMAND ...         runs a command and appends what it prints to LOG
#   clean_up_at_exit FUNCTION   calls it at the end, also after Ctrl-C or SIGTERM
#
# A command runs in the background, with a process group of its own. So a signal to the script acts at
# once, not when the command ends, and the script decides what becomes of the command: gcloud killed
# alone leaves its ssh behind, and Ctrl-C must not reach the one that deletes a slice.

dry_run="" poll_seconds=30
background="" # the process group of the command that runs now

quoted() { # The arguments as one line that a shell reads back as them.
  local argument line=""
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || argument="${argument@Q}"
    line+="$argument "
  done
  echo "${line% }"
}

note() {
  [[ -n $dry_run ]] || printf '%(%H:%M:%S)T %s: %s\n' -1 "${name:-}" "$*" >&2
}

begin() {
  set -m
  "$@" </dev/null &
  background=$!
  set +m
}

finish() {
  local status=0
  wait "$background" || status=$?
  background=""
  return "$status"
}

cancel() {
  [[ -n $background ]] || return 0
  kill -KILL -- "-$background" 2>/dev/null || true
  finish 2>/dev/null || true
}

run() {
  local log="$1" status=0
  shift
  if [[ -n $dry_run ]]; then
    quoted "$@"
    return
  fi
  echo "+ $(quoted "$@")" >>"$log"
  begin "$@" >>"$log" 2>&1
  finish || status=$?
  if ((status)); then
    note "exit code $status from: $(quoted "$@")"
    tail -n 20 "$log" >&2
  fi
  return "$status"
}

pause() {
  sleep "$poll_seconds" >/dev/null 2>&1 &
  wait "$!"
}

within() { # SECONDS COMMAND ...: for commands that may hang
  local watchdog status=0
  begin "${@:2}"
  set -m
  (sleep "$1" && kill -KILL -- "-$background") >/dev/null 2>&1 &
  watchdog=$!
  set +m
  finish || status=$?
  kill -KILL -- "-$watchdog" 2>/dev/null || true
  wait "$watchdog" 2>/dev/null || true
  return "$status"
}

outlast() { # PID: waits for a child, whatever signals come meanwhile
  local status
  while :; do
    status=0
    wait "$1" || status=$?
    kill -0 "$1" 2>/dev/null || return "$status"
  done
}

clean_up_at_exit() {
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # Nothing that costs money may be left behind: not by a second Ctrl-C, and not by what is said to a
  # pipe whose reader is gone, as tee is after the first.
  # shellcheck disable=SC2064
  trap "status=\$?; trap '' HUP INT TERM PIPE; cancel
    $1 || status=\$((status ? status : 1)); exit \$status" EXIT
}
