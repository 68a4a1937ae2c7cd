#!/usr/bin/env bash
# One training as several processes on this machine, joined as those of a pod are: to try on a CPU
# what runs on many hosts.
#
#   bash launch/local.sh -n PROCESSES [-d DEVICES] -- FLAGS of imagen-video train
#
# for example
#
#   bash launch/local.sh -n 2 -- --config configs/stages/base.py:tiny --workdir runs/base
#
#   -n PROCESSES   how many processes
#   -d DEVICES     CPU devices of each (1)
#
# Process 0 reports here; the others write to files process_1.log, ... in the folder that
# LOCAL_LOGS names (a new one under /tmp by default). If one process fails, the others are stopped and
# its exit code is that of the script. Ctrl-C stops all, after they have saved a checkpoint.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

processes="" devices=1
while [[ $# -gt 0 ]]; do
  case "$1" in
    -n) processes="${2:-}" && shift $(($# > 1 ? 2 : 1)) ;;
    -d) devices="${2:-}" && shift $(($# > 1 ? 2 : 1)) ;;
    --) shift && break ;;
    --help | -h) print_help && exit ;;
    *) mistake "unexpected argument '$1'" ;;
  esac
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || mistake "-n '$processes' is not a number of processes"
[[ $devices =~ ^[1-9][0-9]*$ ]] || mistake "-d '$devices' is not a number of devices"
[[ $# -gt 0 ]] || mistake "nothing to train: flags of imagen-video train follow --"

install_into_venv "[train]"
logs="${LOCAL_LOGS:-$(mktemp -d)}"
mkdir -p "$logs"
port="$("$VENV/bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$processes"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

workers=()
stop() {
  kill -TERM "${workers[@]}" 2>/dev/null || true
}
trap stop INT TERM
for ((process = 0; process < processes; process++)); do
  output=/dev/stdout
  ((process)) && output="$logs/process_$process.log"
  JAX_PROCESS_ID="$process" "$VENV/bin/imagen-video" train --distributed "$@" >"$output" 2>&1 &
  workers+=("$!")
done

status=0
for ((left = processes; left > 0; left--)); do
  code=0
  wait -n || code=$?
  if ((code && !status)); then
    status="$code"
    stop
  fi
done
if ((status && processes > 1)); then
  tail -n 5 "$logs"/process_*.log >&2
fi
exit "$status"
