#!/usr/bin/env bash
# One training, or another command, as several processes on this machine, joined as those of a pod
# are: to try on a CPU what runs on many hosts.
#
#   bash launch/local.sh -n PROCESSES [-d DEVICES] -- [COMMAND] FLAGS of imagen-video COMMAND
#
# COMMAND is train if there is none. For example
#
#   bash launch/local.sh -n 2 -- --config configs/stages/base.py:tiny --workdir runs/base
#   bash launch/local.sh -n 2 -- sample --prompt "a red circle moving left on a white background" --out samples
#
#   -n PROCESSES   how many processes
#   -d DEVICES     CPU devices of each (1)
#
# Process 0 reports here; the others write to files process_1.log, ... in the folder that
# LOCAL_LOGS names (a new one under /tmp by default). If one process fails, the others are stopped and
# its exit code is that of the script. Ctrl-C stops all, a training after it has saved a checkpoint: 130.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

processes="" devices=1 poll_seconds=0.1
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
[[ $# -gt 0 ]] || mistake "nothing to run: flags of imagen-video train, or another command, follow --"
[[ $1 != --* ]] || set -- train "$@"

install_into_venv "[train]"
logs="${LOCAL_LOGS:-$(mktemp -d)}"
mkdir -p "$logs"
port="$("$VENV/bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$processes"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

work=("$VENV/bin/imagen-video" "$1" --distributed "${@:2}")
workers=() told="" status=0
stop() {
  kill -TERM "${workers[@]}" 2>/dev/null || true
}
trap 'told=130; stop' INT
trap 'told=143; stop' TERM
JAX_PROCESS_ID=0 "${work[@]}" &
workers[0]=$!
for ((process = 1; process < processes; process++)); do
  JAX_PROCESS_ID="$process" "${work[@]}" >"$logs/process_$process.log" 2>&1 &
  workers[process]=$!
done
((processes == 1)) || echo "output of the other processes: $logs/process_*.log" >&2

# Not by wait -n: a signal ends that, too, and then no process has.
while [[ ${#workers[@]} -gt 0 ]]; do
  pause || true
  for process in "${!workers[@]}"; do
    ! kill -0 "${workers[process]}" 2>/dev/null || continue
    code=0
    outlast "${workers[process]}" || code=$?
    unset "workers[process]"
    if ((code)); then stop; fi
    # From 128 on it was a signal, which may be how a process ends whose neighbour has failed.
    if ((code && (!status || (status >= 128 && code < 128)))); then
      status="$code"
    fi
  done
done
if ((status && processes > 1)); then
  tail -n 5 "$logs"/process_*.log >&2
fi
exit "${told:-$status}"
